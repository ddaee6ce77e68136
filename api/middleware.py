"""Every request gets an id and a line in the log; every answer the headers that keep browsers from mischief."""

import re
import time
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventstore.ids import new_id

_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_PRINTABLE = re.compile(r"[\x20-\x7e]{1,128}")
_SECURITY = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PROBES = {"/healthz", "/readyz", "/metrics"}
_FAULTS = 500
# W3C Trace Context, section 3.2: version, trace id, parent id, flags; versions after 00 may have more.
_REST = "-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(
    rf"00-(?P<known>(?!0{{32}})[0-9a-f]{{32}}){_REST}"
    rf"|(?!00|ff)[0-9a-f]{{2}}-(?P<later>(?!0{{32}})[0-9a-f]{{32}}){_REST}(?:-[ -~]{{0,200}})?"
)
_log = structlog.get_logger(__name__)


class RequestIds:
    """Answers the client's X-Client-Request-Id or X-Request-Id as X-Request-Id, else the id that is drawn here.

    Only the drawn one stands in the log of events for good: the client's may be personal text.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own, client = str(new_id()), _client_id(Headers(scope=scope))
        request_id = client or own
        state = scope.setdefault("state", {})
        state["request_id"], state["own_request_id"], state["client_request_id"] = request_id, own, client
        began = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception:  # noqa: BLE001  # uvicorn would tell it without the id
            # Told here, with the request's id. What was answered is a 500 already, or breaks off.
            _log.exception("request broke", method=scope["method"], path=scope["path"], **_ids(scope))
        finally:
            tell = _log.debug if scope["path"] in _PROBES and status < _FAULTS else _log.info
            tell(
                "request",
                method=scope["method"],
                path=scope["path"],
                http_status=status,
                ms=round((time.perf_counter() - began) * 1000, 1),
                **_ids(scope),
                **_sender(scope),
            )


def _ids(scope: Scope) -> dict[str, str]:
    """The request's id, which stands in the events that it caused, and what its client calls it."""
    client = scope["state"]["client_request_id"]
    return {"request_id": scope["state"]["own_request_id"]} | ({"client_request_id": client} if client else {})


def _sender(scope: Scope) -> dict[str, str]:
    """Whose request it was, by tenant and key id, never the key; nor is the query logged, where a token may stand."""
    asker = scope["state"].get("caller")
    trace = trace_id(Headers(scope=scope).get("traceparent", ""))
    told = {"tenant": getattr(asker, "tenant", None), "key_id": getattr(asker, "key_id", None), "trace_id": trace}
    return {name: str(value) for name, value in told.items() if value is not None}


def trace_id(traceparent: str) -> str | None:
    """The trace that a traceparent names; None for one that is malformed, which counts as absent."""
    match = _TRACEPARENT.fullmatch(traceparent.strip())
    return None if match is None else match["known"] or match["later"]


class AcceptedEncoding:
    """Tells the middleware that compresses, which looks for a word alone, what is accepted (RFC 9110, 12.5.3)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] == "http":
            given = ",".join(Headers(scope=scope).getlist("accept-encoding"))
            others = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            accepted = b"gzip" if _takes_gzip(given) else b"identity"
            scope["headers"] = [*others, (b"accept-encoding", accepted)]
        await self._app(scope, receive, send)


class RelativeRedirects:
    """Makes redirects to another path of this service relative.

    Behind a proxy that ends TLS an absolute one would lead to http://, with all that the request bears.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.TEMPORARY_REDIRECT:
                headers = MutableHeaders(scope=message)
                url = urlsplit(headers["Location"])
                # A path that began with two slashes would name another host.
                headers["Location"] = urlunsplit(("", "", f"/{url.path.lstrip('/')}", url.query, ""))
            await send(message)

        await self._app(scope, receive, answer)


class SecurityHeaders:
    """What every answer tells browsers: trust the declared type, show it in no frame, name it to nobody, keep nothing.

    An answer that says more itself, like the page of documentation, is left as it is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/v1"):
                    # Kept by nobody but the asker, and not shown again without asking: an ETag still saves the body.
                    headers.setdefault("Cache-Control", "private, no-cache")
            await send(message)

        await self._app(scope, receive, answer)


def _takes_gzip(given: str) -> bool:
    """Whether an Accept-Encoding takes gzip, and would not rather have no encoding at all."""
    weights: dict[str, float] = {}
    for part in given.lower().split(","):
        coding, *parameters = (one.strip() for one in part.split(";"))
        weight = next((one.removeprefix("q=") for one in parameters if one.startswith("q=")), "1")
        # What is malformed is not accepted.
        weights[coding] = float(weight) if _WEIGHT.fullmatch(weight) else 0.0
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _client_id(headers: Headers) -> str | None:
    for name in ("x-client-request-id", "x-request-id"):
        given = headers.get(name)
        if given is not None and _PRINTABLE.fullmatch(given):
            return given
    return None
