"""Every request gets an id and a line in the log."""

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventstore.ids import new_id

_PRINTABLE = re.compile(r"[\x20-\x7e]{1,128}")
_log = structlog.get_logger(__name__)


class RequestIds:
    """Takes the client's X-Client-Request-Id or X-Request-Id, else draws one; answers it as X-Request-Id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
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
        finally:
            _log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.perf_counter() - began) * 1000, 1),
                request_id=request_id,
            )


def _request_id(headers: Headers) -> str:
    for name in ("x-client-request-id", "x-request-id"):
        given = headers.get(name)
        if given is not None and _PRINTABLE.fullmatch(given):
            return given
    return str(new_id())
