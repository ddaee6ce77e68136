"""Middleware: request ids and the access log, security headers, relative redirects, accepted encodings."""

import re
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventstore.ids import new_id

_QUALITY_VALUE_PATTERN = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_CLIENT_REQUEST_ID_PATTERN = re.compile(r"[\x20-\x7e]{1,128}")
_SECURITY_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_DEBUG_LOGGED_PATHS = {"/healthz", "/readyz", "/metrics"}
_FIRST_SERVER_ERROR_STATUS = 500
# W3C Trace Context, section 3.2: version, trace id, parent id, flags; versions after 00 may have more.
_PARENT_ID_AND_FLAGS_PATTERN = "-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT_PATTERN = re.compile(
    rf"00-(?P<known>(?!0{{32}})[0-9a-f]{{32}}){_PARENT_ID_AND_FLAGS_PATTERN}"
    rf"|(?!00|ff)[0-9a-f]{{2}}-(?P<later>(?!0{{32}})[0-9a-f]{{32}}){_PARENT_ID_AND_FLAGS_PATTERN}(?:-[ -~]{{0,200}})?"
)
_log = structlog.get_logger(__name__)


class RequestIdMiddleware:
    """Gives each request an id, and a line in the access log.

    X-Request-Id of the response is the client's X-Client-Request-Id or X-Request-Id, or else the id made here. Only
    the id made here is stored in events: the client's may be personal text.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own, client = str(new_id()), _client_request_id(Headers(scope=scope))
        request_id = client or own
        scope.setdefault("state", {}).update(request_id=request_id, own_request_id=own, client_request_id=client)
        began = time.perf_counter()
        status = 0

        def begin(message: Message) -> None:
            nonlocal status
            status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = request_id

        try:
            await self._app(scope, receive, call_on_response_start(send, begin))
        except Exception:  # noqa: BLE001  # uvicorn would log it without the request's id
            # The response was a 500, or was cut off.
            _log.exception("request broke", method=scope["method"], path=scope["path"], **_request_id_log_fields(scope))
        finally:
            _log_request(scope, status, time.perf_counter() - began)


def call_on_response_start(send: Send, on_response_start: Callable[[Message], None]) -> Send:
    """A `send` that calls `on_response_start` with the first message of the response, before it is sent."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            on_response_start(message)
        await send(message)

    return sent


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
    trace = parse_trace_id(Headers(scope=scope).get("traceparent", ""))
    found = {"tenant": getattr(caller, "tenant", None), "key_id": getattr(caller, "key_id", None), "trace_id": trace}
    return {name: str(value) for name, value in found.items() if value is not None}


def parse_trace_id(traceparent: str) -> str | None:
    """The trace id of a traceparent; None if it is malformed."""
    match = _TRACEPARENT_PATTERN.fullmatch(traceparent.strip())
    return None if match is None else match["known"] or match["later"]


class AcceptEncodingMiddleware:
    """Replaces Accept-Encoding by `gzip` or `identity`: GZipMiddleware ignores weights (RFC 9110, 12.5.3)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            given = ",".join(Headers(scope=scope).getlist("accept-encoding"))
            others = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            accepted = b"gzip" if _prefers_gzip(given) else b"identity"
            scope["headers"] = [*others, (b"accept-encoding", accepted)]
        await self._app(scope, receive, send)


class ResponseStartMiddleware:
    """Calls a function with the request's scope and the first message of each response, before it is sent."""

    def __init__(self, app: ASGIApp, on_response_start: Callable[[Scope, Message], None]) -> None:
        self._app = app
        self._begin = on_response_start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        await self._app(scope, receive, call_on_response_start(send, partial(self._begin, scope)))


def make_redirect_relative(_scope: Scope, message: Message) -> None:
    """Make Starlette's redirects to other paths of this service relative.

    Behind a proxy that terminates TLS, an absolute one would lead to http://, and credentials with it.
    """
    if message["status"] == HTTPStatus.TEMPORARY_REDIRECT:
        headers = MutableHeaders(scope=message)
        url = urlsplit(headers["Location"])
        # A path that begins with two slashes would name another host.
        headers["Location"] = urlunsplit(("", "", f"/{url.path.lstrip('/')}", url.query, ""))


def set_security_headers(scope: Scope, message: Message) -> None:
    """Set headers for browsers: no content sniffing, no frames, no referrer, no caching without revalidation.

    Headers that a response sets itself are kept.
    """
    headers = MutableHeaders(scope=message)
    for name, value in _SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    if scope["path"].startswith("/v1"):
        # Not in shared caches, and revalidated before each use: an ETag still saves the body.
        headers.setdefault("Cache-Control", "private, no-cache")


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


def _client_request_id(headers: Headers) -> str | None:
    for name in ("x-client-request-id", "x-request-id"):
        given = headers.get(name)
        if given is not None and _CLIENT_REQUEST_ID_PATTERN.fullmatch(given):
            return given
    return None
