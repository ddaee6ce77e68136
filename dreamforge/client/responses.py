"""Decodes the responses of the service, and the exceptions of the client.

ClientError
├── Unreachable         no service answers, or something else does
│   └── ResponseLost    the connection broke before the response: the service may have executed the request
├── ApiError            the service returned an error
├── AmbiguousId         several jobs have an id that begins with the given text
└── DamagedDownload     a downloaded image differs from what the service recorded
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
import msgspec

JsonObject = dict[str, Any]
T = TypeVar("T")


class ClientError(Exception):
    """A request has no usable response."""


class Unreachable(ClientError):
    """No service answers at the address, or something else does."""


class ResponseLost(Unreachable):
    """The connection broke before the response arrived. The service may have executed the request."""


class AmbiguousId(ClientError):
    """Several jobs have an id that begins with the given text."""


class ApiError(ClientError):
    """The service returned an error. details: of the error body."""

    def __init__(self, status: int, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details or {}


class DamagedDownload(ClientError):
    """A downloaded artifact differs from what the service recorded."""


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    details: JsonObject | None = None


def decode_job(response: httpx.Response) -> JsonObject:
    """The `job` of a successful response. Raises `ApiError` and `Unreachable`."""
    job: JsonObject = decode_json(expect_success(response), JsonObject)["job"]
    return job


def decode_json(response: httpx.Response, body_type: type[T]) -> T:
    """The body as a type. Raises `Unreachable` if it has another form: the server is not Dream Forge."""
    try:
        return msgspec.json.decode(response.content, type=body_type)
    except msgspec.DecodeError as error:
        raise Unreachable(
            f"What answers at {response.url} with status {response.status_code} is not Dream Forge."
        ) from error


def expect_success(response: httpx.Response) -> httpx.Response:
    """Return the response. Raises `ApiError` if its status is an error."""
    if response.is_success:
        return response
    body = decode_json(response, _ErrorBody)
    raise ApiError(response.status_code, body.code, body.message, body.details)
