"""Decodes the responses of the service."""

from typing import Any, TypeVar

import httpx
import msgspec

from dreamforge.client.errors import ApiError, Unreachable

JsonObject = dict[str, Any]
T = TypeVar("T")


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    details: JsonObject | None = None


def job_of(response: httpx.Response) -> JsonObject:
    """The `job` of a successful response. Raises `ApiError` and `Unreachable`."""
    job: JsonObject = decode(expect_success(response), JsonObject)["job"]
    return job


def decode(response: httpx.Response, form: type[T]) -> T:
    """The body as a type. Raises `Unreachable` if it has another form: the server is not Dream Forge."""
    try:
        return msgspec.json.decode(response.content, type=form)
    except msgspec.DecodeError as error:
        raise Unreachable(
            f"What answers at {response.url} with status {response.status_code} is not Dream Forge."
        ) from error


def expect_success(response: httpx.Response) -> httpx.Response:
    """Return the response. Raises `ApiError` if its status is an error."""
    if response.is_success:
        return response
    body = decode(response, _ErrorBody)
    raise ApiError(response.status_code, body.code, body.message, body.details)
