"""Reads and validates the parameters of a request, and reads its body."""

import asyncio
import codecs
import re
from datetime import UTC, datetime
from uuid import UUID

from starlette.requests import ClientDisconnect, Request

from api.errors import ApiError, invalid_field_error, not_found_error

# An unescaped `+` in a query is decoded as a space.
_TIME_WITH_SPACE_FOR_PLUS = re.compile(r"(.*[T ]\d\d.*) (\d\d(?::?\d\d)?)")
_MAX_TIME_TEXT_LENGTH = 40
# UTF-32 first: one of its byte order marks begins with one of UTF-16.
_REJECTED_ENCODING_BY_BOM = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
BODY_TIMEOUT_S = 30.0
"""How long the whole body may take to arrive."""


def path_job_id(request: Request) -> UUID:
    """The job's id in the path; 404 if it is not a UUID."""
    return path_uuid(request, "job_id", "job")


def path_uuid(request: Request, name: str, resource_noun: str) -> UUID:
    """An id in the path; 404 if it is not a UUID. what: the noun of the error's message."""
    given = request.path_params[name]
    try:
        found = UUID(given)
    except ValueError:
        found = None
    # UUID() also accepts braces, urn:uuid: and digits of any script.
    if found is None or str(found) != given.lower():
        raise not_found_error(f"{resource_noun} {given[:200]}")
    return found


def comma_separated_query(request: Request, name: str) -> frozenset[str]:
    """The values of a query parameter that may be repeated and may hold several, separated by commas."""
    return frozenset(one.strip() for value in request.query_params.getlist(name) for one in value.split(","))


def last_event_id(request: Request) -> str | None:
    """The id of the last event that the client received: from the header, or from the query if it can't set headers."""
    return request.headers.get("last-event-id") or request.query_params.get("last_event_id") or None


def bounded_integer_query(request: Request, name: str, *, default: int, minimum: int, maximum: int) -> int:
    """An integer query parameter; 422 if it is out of bounds."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 20 and minimum <= int(given) <= maximum):
        raise invalid_field_error(name, f"must be a whole number from {minimum} to {maximum}")
    return int(given)


def clamped_integer_query(request: Request, name: str, *, default: int, minimum: int, maximum: int) -> int:
    """An integer query parameter, clamped to the bounds."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,20}", given):
        raise invalid_field_error(name, "must be a whole number")
    return min(max(int(given), minimum), maximum)


def choice_query(request: Request, name: str, choices: tuple[str, ...]) -> str | None:
    """A query parameter with a fixed set of values; None if absent."""
    given = request.query_params.get(name)
    if given is not None and given not in choices:
        raise invalid_field_error(name, f"must be one of {', '.join(choices)}")
    return given


def time_query(request: Request, name: str) -> datetime | None:
    """A time in a query parameter: RFC 3339, UTC unless it has an offset; None if absent."""
    given = request.query_params.get(name)
    if given is None:
        return None
    # fromisoformat accepts digits of any script; the pattern takes cubic time.
    plausible = given.isascii() and len(given) <= _MAX_TIME_TEXT_LENGTH
    text = _TIME_WITH_SPACE_FOR_PLUS.sub(r"\1+\2", given.upper()) if plausible else ""
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid_field_error(name, "must be a time like 2026-01-02T12:00:00Z") from None


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request, which must be declared as JSON; at most `max_bytes` bytes."""
    _expect_json_content_type(request)
    return await _read_utf8_body(request, max_bytes)


async def expect_empty_body(request: Request, max_bytes: int) -> None:
    """Read the body of a request that takes none; 422 unless it is empty, null or {}."""
    body = (await _read_utf8_body(request, max_bytes)).strip()
    if not body:
        return
    _expect_json_content_type(request)
    if body != b"null" and (body[:1] != b"{" or body[-1:] != b"}" or body[1:-1].strip()):
        raise invalid_field_error("body", "must be empty, or {}")


async def _read_utf8_body(request: Request, max_bytes: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _read_limited_body(request, max_bytes)
    except ClientDisconnect:
        raise invalid_field_error("body", "the connection ended before the body did") from None
    except TimeoutError:
        raise invalid_field_error("body", f"did not arrive within {BODY_TIMEOUT_S:g} s") from None
    for mark, name in _REJECTED_ENCODING_BY_BOM.items():
        if body.startswith(mark):
            raise invalid_field_error("body", f"is {name}; send UTF-8")
    return bytes(body).removeprefix(codecs.BOM_UTF8)  # a parser may ignore it (RFC 8259, section 8.1)


async def _read_limited_body(request: Request, max_bytes: int) -> bytearray:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large_error(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large_error(max_bytes)
    return body


def _too_large_error(max_bytes: int) -> ApiError:
    return ApiError(
        "payload_too_large", f"The body is over {max_bytes} bytes.", {"field": "body", "max_bytes": max_bytes}
    )


def _expect_json_content_type(request: Request) -> None:
    _expect_no_content_encoding(request)
    kind = request.headers.get("content-type", "").split(";", maxsplit=1)[0].strip().lower()
    if kind in {"", "application/json"} or (kind.startswith("application/") and kind.endswith("+json")):
        return
    raise ApiError(
        "unsupported_media_type",
        f"The body is declared as {kind}; send application/json.",
        {"field": "Content-Type", "reason": "must be application/json"},
    )


def _expect_no_content_encoding(request: Request) -> None:
    codings = [one.strip() for value in request.headers.getlist("content-encoding") for one in value.split(",")]
    for coding in codings:
        if coding.lower() not in {"", "identity"}:
            raise ApiError(
                "unsupported_media_type",
                f"The body is encoded as {coding[:100]}; send it as it is.",
                {"field": "Content-Encoding", "reason": "must be absent, or identity"},
                {"Accept-Encoding": "identity"},
            )
