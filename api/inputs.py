"""What a request carries beside its JSON: parameters of the path and the query, and the body's bytes, checked."""

import asyncio
import codecs
import re
from datetime import UTC, datetime
from uuid import UUID

from starlette.requests import ClientDisconnect, Request

from api.errors import ApiError, invalid, not_found

# In a query a `+` that was not escaped arrives as a blank.
_BLANK_OFFSET = re.compile(r"(.*[T ]\d\d.*) (\d\d(?::?\d\d)?)")
_LONGEST_TIME = 40
# Those of UTF-32 first: one begins like that of UTF-16.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
BODY_S = 30.0
"""How long a body may take to arrive, all of it."""


def job_id(request: Request) -> UUID:
    """The job's id in the path; one that is no UUID names no job."""
    return path_id(request, "job_id", "job")


def path_id(request: Request, name: str, what: str) -> UUID:
    """An id in the path; one that is no UUID names nothing."""
    given = request.path_params[name]
    try:
        found = UUID(given)
    except ValueError:
        found = None
    # UUID() also takes braces, urn:uuid: and digits of any script.
    if found is None or str(found) != given.lower():
        raise not_found(f"{what} {given[:200]}")
    return found


def included(request: Request) -> set[str]:
    """What `include` asks for: names with commas between, or the parameter repeated."""
    return {name.strip() for value in request.query_params.getlist("include") for name in value.split(",")}


def whole_number(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """A query parameter within bounds."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 20 and least <= int(given) <= most):
        raise invalid(name, f"must be a whole number from {least} to {most}")
    return int(given)


def clamped_number(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """A query parameter that is moved to the nearer bound when it is beyond."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,20}", given):
        raise invalid(name, "must be a whole number")
    return min(max(int(given), least), most)


def one_of(request: Request, name: str, choices: tuple[str, ...]) -> str | None:
    """A query parameter that is one of a few words; None where it is absent."""
    given = request.query_params.get(name)
    if given is not None and given not in choices:
        raise invalid(name, f"must be one of {', '.join(choices)}")
    return given


def moment(request: Request, name: str) -> datetime | None:
    """A point in time in a query parameter: RFC 3339 with any offset, none meaning UTC; None where it is absent."""
    given = request.query_params.get(name)
    if given is None:
        return None
    # fromisoformat reads digits of any script; the pattern takes the cube of a text's length.
    known = given.isascii() and len(given) <= _LONGEST_TIME
    text = _BLANK_OFFSET.sub(r"\1+\2", given.upper()) if known else ""
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid(name, "must be a time like 2026-01-02T12:00:00Z") from None


async def json_body(request: Request, most: int) -> bytes:
    """The body of a request that is to be JSON, `most` bytes at most."""
    _expect_json(request)
    return await _body(request, most)


async def no_body(request: Request, most: int) -> None:
    """Take the body of a request that needs none: nothing, null or {}."""
    body = (await _body(request, most)).strip()
    if not body:
        return
    _expect_json(request)
    if body != b"null" and (body[:1] != b"{" or body[-1:] != b"}" or body[1:-1].strip()):
        raise invalid("body", "must be empty, or {}")


async def _body(request: Request, most: int) -> bytes:
    too_large = ApiError("payload_too_large", f"The body is over {most} bytes.", {"field": "body", "max_bytes": most})
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except ClientDisconnect:
        raise invalid("body", "the connection ended before the body did") from None
    except TimeoutError:
        raise invalid("body", f"did not arrive within {BODY_S:g} s") from None
    for mark, name in _OTHER_MARKS.items():
        if body.startswith(mark):
            raise invalid("body", f"is {name}; send UTF-8")
    return bytes(body).removeprefix(codecs.BOM_UTF8)  # RFC 8259, section 8.1, lets a parser pass over it


def _expect_json(request: Request) -> None:
    codings = [one.strip() for value in request.headers.getlist("content-encoding") for one in value.split(",")]
    for coding in codings:
        if coding.lower() not in {"", "identity"}:
            raise ApiError(
                "unsupported_media_type",
                f"The body is encoded as {coding[:100]}; send it as it is.",
                {"field": "Content-Encoding", "reason": "must be absent, or identity"},
                {"Accept-Encoding": "identity"},
            )
    kind = request.headers.get("content-type", "").split(";", maxsplit=1)[0].strip().lower()
    if kind in {"", "application/json"} or (kind.startswith("application/") and kind.endswith("+json")):
        return
    raise ApiError(
        "unsupported_media_type",
        f"The body is declared as {kind}; send application/json.",
        {"field": "Content-Type", "reason": "must be application/json"},
    )
