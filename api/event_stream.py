"""Live streams: the response with server-sent events, and the endpoint that opens it."""

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import frames
from api.access import Caller, caller_of, is_key_still_valid
from api.errors import ApiError
from api.routing import Handler
from api.services import Services

_MIN_CHUNK_BYTES = 1 << 16
_RETRYABLE_ERROR_CODES = {"rate_limited", "infra_unavailable", "internal"}
_log = structlog.get_logger(__name__)


class EventStreamResponse(Response):
    """Sends frames as they come, until the client leaves.

    Ends if the client does not read for a while, if its key was revoked, or after the longest time for a stream.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, services: Services, content: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._services = services
        self._content = content
        self._slow_s = services.config.slow_client_s
        max_s = services.config.stream_max_s
        # With jitter: streams that began together must not all reconnect together.
        self._max_s = None if max_s is None else max_s * random.uniform(0.9, 1.1)  # noqa: S311  # no secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the content ends or the client disconnects."""
        sending = asyncio.create_task(self._send_response(send, caller_of(Request(scope))))
        leaving = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            results = await asyncio.gather(sending, leaving, return_exceptions=True)
        if isinstance(results[0], Exception) and not isinstance(results[0], TimeoutError):
            raise results[0]

    async def _send_response(self, send: Send, client: Caller) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout(self._max_s) as life:
                await self._send_chunks(send, client)
        except TimeoutError:
            if not life.expired():
                raise
        async with asyncio.timeout(self._slow_s):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_chunks(self, send: Send, client: Caller) -> None:
        # Closed at once, also on a timeout: until then the tailer reads for this stream.
        async with aclosing(self._content) as content:
            async for chunk in content:
                if not await is_key_still_valid(self._services, client):
                    return
                async with asyncio.timeout(self._slow_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                # A send seldom waits: let other tasks run, and notice a disconnect.
                await asyncio.sleep(0)


class HeartbeatTimer:
    """When the next heartbeat is due: `seconds` after the last, however much was sent between."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._next = self._clock() + seconds

    @property
    def seconds_left(self) -> float:
        """Seconds to the next heartbeat."""
        return max(0.0, self._next - self._clock())

    def take_if_due(self) -> bool:
        """Whether a heartbeat is due. If so, the next is due `seconds` from now."""
        if self._clock() < self._next:
            return False
        self._next = self._clock() + self._seconds
        return True


def join_frames(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Join frames into chunks of 64 KiB and the rest of a frame, since each send has a cost."""
    held: list[bytes] = []
    size = 0
    for frame in frames:
        held.append(frame)
        size += len(frame)
        if size >= _MIN_CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


class StreamEndpoint:
    """The ASGI endpoint of a stream. kind: the stream's label in metrics.

    Where other routes answer 429, 503 or 500, and beyond `max_streams` or at the process's stop, it answers 200 and a
    reconnection delay: at any other status an EventSource stops for good.
    """

    def __init__(self, kind: str, open_stream: Handler) -> None:
        self._kind = kind
        self._opener = open_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one stream. Its slot is taken before the first await: after a restart all clients come at once."""
        request = Request(scope, receive, send)
        services: Services = request.app.state.services
        with services.open_streams.occupy_slot(self._kind, services.config.max_streams) as free:
            response = await self._open_or_defer(services, request) if free else _reconnect_later_response(services)
            await response(scope, receive, send)

    async def _open_or_defer(self, services: Services, request: Request) -> Response:
        try:
            services.admission.count_request(caller_of(request).tenant)
            return await _open_unless_stopping(services, self._opener(request, services))
        except HTTPException:
            raise
        except ApiError as error:
            if error.code not in _RETRYABLE_ERROR_CODES:
                raise
        except Exception:  # noqa: BLE001  # the client must reconnect whatever the error is
            _log.exception("stream rejected", path=request.url.path)
        return _reconnect_later_response(services)


async def _open_unless_stopping(services: Services, opening: Coroutine[Any, Any, Response]) -> Response:
    """Open a stream, unless the process stops before it is open: the server would then answer 500."""
    work = asyncio.create_task(opening)
    stopping = asyncio.create_task(services.stopping.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else _reconnect_later_response(services)
    finally:
        stopping.cancel()
        work.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)


def _reconnect_later_response(services: Services) -> EventStreamResponse:
    return EventStreamResponse(services, _reconnect_later_content())


async def _reconnect_later_content() -> AsyncGenerator[bytes, None]:
    yield frames.reconnect_later_content()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
