"""Live streams: the response with server-sent events, and the endpoint that opens it."""

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

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
from eventstore.notifier import WakeSignal

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
        receiving = asyncio.current_task()
        # A task of its own, without the middleware's frames below it, which each of its steps would pass.
        sending = asyncio.create_task(self._send_response(send, caller_of(Request(scope))))
        waiting = True

        def end(_: asyncio.Task[None]) -> None:
            if waiting and receiving is not None:
                receiving.cancel()

        sending.add_done_callback(end)
        try:
            await _wait_for_disconnect(receive)
        except asyncio.CancelledError:
            if not sending.done() or receiving is None or receiving.uncancel() > 0:
                raise
        finally:
            waiting = False
            sending.cancel()
            [result] = await asyncio.gather(sending, return_exceptions=True)
        if isinstance(result, Exception) and not isinstance(result, TimeoutError):
            raise result

    async def _send_response(self, send: Send, client: Caller) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with _BodySender(send, self._slow_s) as body:
            try:
                async with asyncio.timeout(self._max_s) as life:
                    await self._send_chunks(body, client)
            except TimeoutError:
                if not life.expired():
                    raise
            await body.send(b"", more=False)

    async def _send_chunks(self, body: "_BodySender", client: Caller) -> None:
        # Closed at once, also on a timeout: until then the tailer reads for this stream.
        async with aclosing(self._content) as content:
            async for chunk in content:
                if not await is_key_still_valid(self._services, client):
                    return
                await body.send(chunk)
                if len(chunk) >= _MIN_CHUNK_BYTES:
                    # More may follow, and a send seldom waits: let other tasks run, and notice a disconnect.
                    await asyncio.sleep(0)
                del chunk  # not kept while the client is idle


class _BodySender:
    """Sends the parts of a body. A context manager; in it, a part that takes over `seconds` raises TimeoutError.

    One timer for all parts: a timer for each would cost more than the sending.
    """

    __slots__ = ("_began", "_expired", "_loop", "_seconds", "_send", "_task", "_timer")

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._began: float | None = None
        self._expired = False

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(self._seconds, self._check)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._timer.cancel()
        if self._expired and kind is asyncio.CancelledError and self._task is not None and self._task.uncancel() == 0:
            raise TimeoutError from error

    async def send(self, part: bytes, *, more: bool = True) -> None:
        """Send a part. more: whether others follow."""
        self._began = self._loop.time()
        await self._send({"type": "http.response.body", "body": part, "more_body": more})
        self._began = None

    def _check(self) -> None:
        now = self._loop.time()
        due = self._seconds + (now if self._began is None else self._began)
        if due > now:
            self._timer = self._loop.call_at(due, self._check)
        elif self._task is not None:
            self._expired = self._task.cancel()


class HeartbeatTimer:
    """Interrupts a wait every `seconds`, however much is sent between. A context manager."""

    __slots__ = ("_due", "_loop", "_seconds", "_timer", "_wake_signal")

    def __init__(self, seconds: float, wake_signal: WakeSignal) -> None:
        self._seconds = seconds
        self._wake_signal = wake_signal
        self._loop = asyncio.get_running_loop()
        self._due = False

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(self._seconds, self._expire)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def take_if_due(self) -> bool:
        """Whether a heartbeat is due, once."""
        due, self._due = self._due, False
        return due

    def _expire(self) -> None:
        self._due = True
        self._wake_signal.interrupt()
        self._timer = self._loop.call_later(self._seconds, self._expire)


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
