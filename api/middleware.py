"""Middleware: request ids and the access log, security headers, relative redirects, compression."""

import re
import time
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

import structlog
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventstore.ids import new_id

_QUALITY_VALUE_PATTERN = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_CLIENT_REQUEST_ID_PATTERN = re.compile(r"[\x20-\x7e]{1,128}")
_PAGE_HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
# Not in shared caches, and revalidated before each use: an ETag still saves the body.
_API_HEADERS = (*_PAGE_HEADERS, (b"cache-control", b"private, no-cache"))
_GZIP_MIN_BYTES = 1000
_UNCOMPRESSED_STATUSES = {HTTPStatus.NO_CONTENT, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_MODIFIED}
_DEBUG_LOGGED_PATHS = {"/healthz", "/readyz", "/metrics"}
_FIRST_SERVER_ERROR_STATUS = 500
# W3C Trace Context, section 3.2: version, trace id, parent id, flags; versions after 00 may have more.
_PARENT_ID_AND_FLAGS_PATTERN = "-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT_PATTERN = re.compile(
    rf"00-(?P<known>(?!0{{32}})[0-9a-f]{{32}}){_PARENT_ID_AND_FLAGS_PATTERN}"
    rf"|(?!00|ff)[0-9a-f]{{2}}-(?P<later>(?!0{{32}})[0-9a-f]{{32}}){_PARENT_ID_AND_FLAGS_PATTERN}(?:-[ -~]{{0,200}})?"
)
_log = structlog.get_logger(__name__)


class RequestMiddleware:
    """The outermost middleware. Gives each request an id and a line in the access log, and each response its headers.

    X-Request-Id of the response is the client's X-Client-Request-Id or X-Request-Id, or else the id made here. Only
    the id made here is stored in events: the client's may be personal text.

    on_response_start: further functions of the scope, the first message of the response and the time since the
    request in seconds. All that concerns the beginning of a response is done by one `send`, since each has a cost.
    """

    def __init__(self, app: ASGIApp, *on_response_start: Callable[[Scope, Message, float], None]) -> None:
        self._app = app
        self._begin = on_response_start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own, client = str(new_id()), _client_request_id(scope)
        scope.setdefault("state", {}).update(request_id=client or own, own_request_id=own, client_request_id=client)
        began = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                make_redirect_relative(message)
                add_headers(scope, message)
                for begin in self._begin:
                    begin(scope, message, time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:  # noqa: BLE001  # uvicorn would log it without the request's id
            # The response was a 500, or was cut off.
            _log.exception("request broke", method=scope["method"], path=scope["path"], **_request_id_log_fields(scope))
        finally:
            _log_request(scope, status, time.perf_counter() - began)


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    quiet = scope["path"] in _DEBUG_LOGGED_PATHS and status < _FIRST_SERVER_ERROR_STATUS
    log = _log.debug if quiet or scope["state"].get("refused") else _log.info
    log(
        "request",
        method=scope["method"],
        path=scope["path"],
        http_status=status,
        ms=round(seconds * 1000, 1),
        **_request_id_log_fields(scope),
        **_sender_log_fields(scope),
    )


def _request_id_log_fields(scope: Scope) -> dict[str, str]:
    """The request's id, as its events have it, and the client's id for it."""
    client = scope["state"]["client_request_id"]
    return {"request_id": scope["state"]["own_request_id"]} | ({"client_request_id": client} if client else {})


def _sender_log_fields(scope: Scope) -> dict[str, str]:
    """The sender by tenant and key id. Keys and queries are not logged: a query may contain a token."""
    caller = scope["state"].get("caller")
    given = find_header(scope, b"traceparent")
    trace = None if given is None else parse_trace_id(given)
    found = {"tenant": getattr(caller, "tenant", None), "key_id": getattr(caller, "key_id", None), "trace_id": trace}
    return {name: str(value) for name, value in found.items() if value is not None}


def find_header(scope: Scope, name: bytes) -> str | None:
    """The first header of a request with a name in lower case. Starlette's `Headers` copies all of them first."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def parse_trace_id(traceparent: str) -> str | None:
    """The trace id of a traceparent; None if it is malformed."""
    match = _TRACEPARENT_PATTERN.fullmatch(traceparent.strip())
    return None if match is None else match["known"] or match["later"]


class CompressionMiddleware:
    """Compresses responses for clients that prefer gzip: GZipMiddleware ignores weights (RFC 9110, 12.5.3).

    For others it is left out, since it costs a request more than its lookup; its Vary is added here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressing = GZipMiddleware(app, minimum_size=_GZIP_MIN_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = b",".join(value for name, value in scope["headers"] if name == b"accept-encoding").decode("latin-1")
        if _prefers_gzip(given):
            others = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope["headers"] = [*others, (b"accept-encoding", b"gzip")]
            await self._compressing(scope, receive, send)
            return

        async def send_with_vary(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_compressible(message):
                MutableHeaders(scope=message).add_vary_header("Accept-Encoding")
            await send(message)

        await self._app(scope, receive, send_with_vary)


def _is_compressible(message: Message) -> bool:
    """Whether GZipMiddleware would compress a response if its client accepted that."""
    headers = dict(message["headers"])
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().decode("latin-1").lower()
    excluded = kind in DEFAULT_EXCLUDED_CONTENT_TYPES or f"{kind.partition('/')[0]}/*" in DEFAULT_EXCLUDED_CONTENT_TYPES
    length = headers.get(b"content-length")
    return (
        not excluded
        and b"content-encoding" not in headers
        and message["status"] not in _UNCOMPRESSED_STATUSES
        and (length is None or int(length) >= _GZIP_MIN_BYTES)
    )


def make_redirect_relative(message: Message) -> None:
    """Make Starlette's redirects to other paths of this service relative.

    Behind a proxy that terminates TLS, an absolute one would lead to http://, and credentials with it.
    """
    if message["status"] == HTTPStatus.TEMPORARY_REDIRECT:
        headers = MutableHeaders(scope=message)
        url = urlsplit(headers["Location"])
        # A path that begins with two slashes would name another host.
        headers["Location"] = urlunsplit(("", "", f"/{url.path.lstrip('/')}", url.query, ""))


def add_headers(scope: Scope, message: Message) -> None:
    """Add the request's id, and headers for browsers: no sniffing, no frames, no referrer, no unchecked caching.

    Headers that a response sets itself are kept.
    """
    own = {name for name, _ in message["headers"]}
    added = _API_HEADERS if scope["path"].startswith(("/v1", "/openai/v1")) else _PAGE_HEADERS
    request_id = (b"x-request-id", scope["state"]["request_id"].encode("latin-1"))
    message["headers"] = [*message["headers"], *(header for header in added if header[0] not in own), request_id]


@lru_cache(maxsize=64)
def _prefers_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding accepts gzip, and does not prefer no encoding."""
    weights: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        coding, *parameters = (one.strip() for one in part.split(";"))
        weight = next((one.removeprefix("q=") for one in parameters if one.startswith("q=")), "1")
        # A malformed weight counts as 0.
        weights[coding] = float(weight) if _QUALITY_VALUE_PATTERN.fullmatch(weight) else 0.0
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _client_request_id(scope: Scope) -> str | None:
    for name in (b"x-client-request-id", b"x-request-id"):
        given = find_header(scope, name)
        if given is not None and _CLIENT_REQUEST_ID_PATTERN.fullmatch(given):
            return given
    return None
