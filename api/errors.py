"""The table of error codes, and the response of each.

{"code", "message", "details"?, "correlation_id", "detail": {code, message, details}}
"""

from collections.abc import Mapping
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from api.compat.openai_errors import is_openai_path, openai_error, openai_headers, openai_status
from api.responses import json_response
from api.schemas import Error, ErrorDetail
from eventstore.errors import EventStoreError
from orchestrator.copying import copy_fields

STATUS_BY_ERROR_CODE = {
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "misdirected_request": 421,
    "invalid_input": 422,
    "rate_limited": 429,
    "infra_unavailable": 503,
    "internal": 500,
}
_MAX_FIELD_NAME_LENGTH = 200
_ERROR_CODE_BY_STATUS = {status: code for code, status in STATUS_BY_ERROR_CODE.items()}
_log = structlog.get_logger(__name__)


class ApiError(Exception):
    """An error that is reported to the client. details: names the field, for invalid input."""

    def __init__(
        self,
        code: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
        self.headers = dict(headers or {})


def invalid_field_error(field: str, reason: str, **details: object) -> ApiError:
    """An error in one field of a request. The client may have made up the field's name, of any length."""
    field = field[:_MAX_FIELD_NAME_LENGTH] or '""'
    return ApiError("invalid_input", f"{field}: {reason}", {"field": field, "reason": reason, **details})


def not_found_error(description: str) -> ApiError:
    """The thing does not exist, or belongs to another tenant."""
    return ApiError("not_found", f"There is no {description}.")


def database_unavailable_error() -> ApiError:
    """The database can't be reached."""
    return ApiError(
        "infra_unavailable", "The database can't be reached at the moment; try again.", headers={"Retry-After": "2"}
    )


def error_response(request: Request, error: ApiError) -> Response:
    """The response that reports an error, in the shape of the API that was called."""
    status = STATUS_BY_ERROR_CODE[error.code]
    if is_openai_path(request.url.path):
        body = openai_error(error.code, error.message, error.details)
        return json_response(body, openai_status(error.code, status), openai_headers(error.code, error.headers))
    details = None if error.details is None else dict(error.details)
    detail = copy_fields(error, ErrorDetail, details=details)
    answer = copy_fields(detail, Error, correlation_id=request.state.request_id, detail=detail)
    return json_response(answer, status, error.headers)


async def handle_api_error(request: Request, error: ApiError) -> Response:
    """Handler of `ApiError`."""
    return error_response(request, error)


async def handle_store_error(request: Request, error: EventStoreError) -> Response:
    """Handler of `EventStoreError`: the database can't be reached, or is not as expected."""
    _log.warning("request failed", error=str(error), path=request.url.path)
    return error_response(request, database_unavailable_error())


async def handle_http_error(request: Request, error: HTTPException) -> Response:
    """Handler of Starlette's own errors: unknown routes and methods."""
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers={"Allow": f"{headers['Allow']}, OPTIONS"})
    code = _ERROR_CODE_BY_STATUS.get(error.status_code, "invalid_input" if error.status_code < 500 else "internal")
    message = {
        "not_found": f"There is nothing at {request.url.path[:200]}.",
        "method_not_allowed": f"{request.method} is not possible here; see the header Allow.",
    }.get(code, error.detail)
    return error_response(request, ApiError(code, message, headers=headers))


def _allowed_methods(request: Request) -> list[str]:
    """The methods of all routes with this path. Static files, which have no such route, take GET and HEAD.

    Starlette's own Allow header names the methods of the first route only.
    """
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in getattr(route, "methods", ())} or {"GET", "HEAD"})


async def handle_unexpected_error(request: Request, _error: Exception) -> Response:
    """Handler of all other errors, which are bugs: the client gets nothing but the request's id."""
    return error_response(request, ApiError("internal", "Something went wrong on our side; it was logged."))


EXCEPTION_HANDLERS: Mapping[Any, Any] = {
    ApiError: handle_api_error,
    EventStoreError: handle_store_error,
    HTTPException: handle_http_error,
    Exception: handle_unexpected_error,
}
