"""The one table of errors, and the shape that each has.

{"code", "message", "details"?, "correlation_id", "detail": {code, message, details}}
"""

from collections.abc import Mapping
from typing import Any

import structlog
from msgspec.structs import asdict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api.responses import json_response
from api.schemas import Error, ErrorDetail
from eventstore.errors import EventStoreError

STATUS = {
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
_LONGEST_FIELD = 200
_CODES = {status: code for code, status in STATUS.items()}
_log = structlog.get_logger(__name__)


class ApiError(Exception):
    """An error that the client is told of. details: names the field, for invalid input."""

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


def invalid(field: str, reason: str, **more: object) -> ApiError:
    """What is wrong with one field of a request. The field's name may be the client's own, of any length."""
    field = field[:_LONGEST_FIELD]
    return ApiError("invalid_input", f"{field}: {reason}", {"field": field, "reason": reason, **more})


def not_found(what: str) -> ApiError:
    """There is no such thing, or it is not the caller's."""
    return ApiError("not_found", f"There is no {what}.")


def unavailable() -> ApiError:
    """The database or the queue can't be reached."""
    return ApiError(
        "infra_unavailable", "The database can't be reached at the moment; try again.", headers={"Retry-After": "2"}
    )


def respond(request: Request, error: ApiError) -> Response:
    """The response that tells of an error."""
    details = None if error.details is None else dict(error.details)
    detail = ErrorDetail(code=error.code, message=error.message, details=details)
    body = Error(**asdict(detail), correlation_id=request.state.request_id, detail=detail)
    return json_response(body, STATUS[error.code], error.headers)


async def on_api_error(request: Request, error: Exception) -> Response:
    """Handler of `ApiError`."""
    if not isinstance(error, ApiError):
        raise error
    return respond(request, error)


async def on_store_error(request: Request, error: Exception) -> Response:
    """Handler of `EventStoreError`: the database is away, or not as it should be."""
    _log.warning("request failed", error=str(error), path=request.url.path)
    return respond(request, unavailable())


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handler of the framework's own errors: unknown routes and methods."""
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers.setdefault("Allow", "GET, HEAD")  # static files don't say
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers={"Allow": f"{headers['Allow']}, OPTIONS"})
    code = _CODES.get(error.status_code, "invalid_input" if error.status_code < 500 else "internal")
    message = {
        "not_found": f"There is nothing at {request.url.path[:200]}.",
        "method_not_allowed": f"{request.method} is not possible here; see the header Allow.",
    }.get(code, error.detail)
    return respond(request, ApiError(code, message, headers=headers))


async def on_bug(request: Request, _error: Exception) -> Response:
    """Handler of everything else: a bug, of which the client learns nothing but the correlation id."""
    return respond(request, ApiError("internal", "Something went wrong on our side; it was logged."))


HANDLERS: Mapping[Any, Any] = {
    ApiError: on_api_error,
    EventStoreError: on_store_error,
    HTTPException: on_http_error,
    Exception: on_bug,
}
