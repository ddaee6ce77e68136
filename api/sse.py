"""A response that goes on: server-sent events, for as long as the client reads them."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import frames
from api.access import Caller, caller, key_active
from api.errors import ApiError
from api.services import Services

_PIECE_BYTES = 1 << 16
_SHED = {"rate_limited", "infra_unavailable", "internal"}
_log = structlog.get_logger(__name__)
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class EventStream(Response):
    """Sends an iterator's frames as they come.

    A client that doesn't read for a while is cut off; one whose key was revoked is told nothing more.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, services: Services, content: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._services = services
        self._content = content
        self._slow_s = services.config.slow_client_s
        longest_s = services.config.stream_max_s
        # With jitter, so that streams which began together don't all come back together.
        self._longest_s = None if longest_s is None else longest_s * random.uniform(0.9, 1.1)  # noqa: S311  # no secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the content ends or the client leaves."""
        sending = asyncio.create_task(self._send(send, caller(Request(scope))))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            results = await asyncio.gather(sending, leaving, return_exceptions=True)
        if isinstance(results[0], Exception) and not isinstance(results[0], TimeoutError):
            raise results[0]

    async def _send(self, send: Send, asker: Caller) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout(self._longest_s) as life:
                await self._send_all(send, asker)
        except TimeoutError:
            if not life.expired():
                raise
        async with asyncio.timeout(self._slow_s):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send, asker: Caller) -> None:
        # Closed at once, also when cut off: until then the tailer would follow for nobody.
        async with aclosing(self._content) as content:
            async for chunk in content:
                if not await key_active(self._services, asker):
                    return
                async with asyncio.timeout(self._slow_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                # A send seldom waits: who catches up must let the others have their turn, and notice its client's end.
                await asyncio.sleep(0)


def pieces(told: Iterable[bytes]) -> Iterator[bytes]:
    """Frames by the handful, since each send has its price; none so large that it could not be read in time."""
    held: list[bytes] = []
    size = 0
    for frame in told:
        held.append(frame)
        size += len(frame)
        if size >= _PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


class HeartbeatTimer:
    """When the next heartbeat is due: `seconds` after the last, however much was sent between."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._next = self._clock() + seconds

    @property
    def left(self) -> float:
        """Seconds to the next heartbeat."""
        return max(0.0, self._next - self._clock())

    def beat(self) -> bool:
        """Is one due? Then the next is due `seconds` from now."""
        if self._clock() < self._next:
            return False
        self._next = self._clock() + self._seconds
        return True


class StreamEndpoint:
    """The ASGI endpoint of a stream's route. kind: of the stream, as metrics call it.

    Sends clients away for a while where others answer 429, 503 or 500, beyond `max_streams`, and at the stop: any
    status but 200 makes an EventSource give up for good.
    """

    def __init__(self, kind: str, opens: Endpoint) -> None:
        self._kind = kind
        self._opens = opens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one stream. Its place is taken before anything is awaited: after a restart all come back at once."""
        request = Request(scope, receive, send)
        services: Services = request.app.state.services
        with services.open_streams.slot(self._kind, services.config.max_streams) as free:
            response = await self._response(services, request) if free else EventStream(services, _come_back())
            await response(scope, receive, send)

    async def _response(self, services: Services, request: Request) -> Response:
        try:
            services.admission.count_request(caller(request).tenant)
            return await _unless_stopping(services, self._opens(request))
        except HTTPException:
            raise
        except ApiError as error:
            if error.code not in _SHED:
                raise
        except Exception:  # noqa: BLE001  # whatever broke, the client is to come back
            _log.exception("stream refused for now", path=request.url.path)
        return EventStream(services, _come_back())


async def _unless_stopping(services: Services, opening: Coroutine[Any, Any, Response]) -> Response:
    """Open a stream. What is not open when the server's patience at its stop ends would be answered with 500."""
    work = asyncio.create_task(opening)
    stopping = asyncio.create_task(services.stopping.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else EventStream(services, _come_back())
    finally:
        stopping.cancel()
        work.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)


async def _come_back() -> AsyncGenerator[bytes, None]:
    yield frames.come_back()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
