"""The live stream of a job: its history from where the client left off, then every event as it comes.

history ─▶ wait for the tailer ─▶ the new events, then progress ─▶ … ─▶ job.finish, a last progress, the end
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import frames
from api.errors import invalid
from api.jobs import included, job_id, load
from api.services import Services
from eventstore import codec
from eventstore.errors import EventStoreError
from projections.progress import progress
from projections.views import JobView, evolve

_PAGE = 500
_RETRY_MS = 2000


class EventStream(Response):
    """Sends an iterator's frames as they come. A client that doesn't read for `slow_s` seconds is cut off."""

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, content: AsyncGenerator[bytes, None], *, slow_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._content = content
        self._slow_s = slow_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the content ends or the client leaves."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            results = await asyncio.gather(sending, leaving, return_exceptions=True)
        if isinstance(results[0], Exception) and not isinstance(results[0], TimeoutError):
            raise results[0]

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Closed at once, also when cut off: until then the tailer would follow for nobody.
        async with aclosing(self._content) as content:
            async for chunk in content:
                async with asyncio.timeout(self._slow_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def stream(request: Request) -> Response:
    """GET /v1/jobs/{id}/progress/stream."""
    services: Services = request.app.state.services
    try:
        view = await load(request)
    except EventStoreError:
        # Any other status would make an EventSource give up for good.
        return EventStream(_shed(), slow_s=services.config.slow_client_s)
    after = _resume(request, view)
    if after == view.version and view.terminal:
        return Response(status_code=204)
    content = follow(services, job_id(request), after, steps_apart="step" in included(request))
    return EventStream(content, slow_s=services.config.slow_client_s)


async def follow(services: Services, job: UUID, after: int, *, steps_apart: bool) -> AsyncGenerator[bytes, None]:
    """The frames of a job's stream after a version, to the job's end."""
    yield frames.retry(_RETRY_MS)
    view: JobView | None = None
    async with services.tailer.follow(job) as waiter:
        while not services.stopping.is_set():
            version = 0 if view is None else view.version
            try:
                events = await services.tailer.after(job, version, limit=_PAGE)
            except EventStoreError:
                return  # the client comes back, and resumes
            for event in events:
                view = evolve(view, codec.fact(event))
                if event.version > after:
                    yield frames.of_event(event, steps_apart=steps_apart)
            if len(events) == _PAGE:
                continue
            if view is None:
                return
            if events:
                yield frames.of_progress(progress(view, services.config.weights))
            if view.terminal:
                return
            if not await waiter.wait(services.config.sse_heartbeat_s):
                yield frames.HEARTBEAT + frames.of_progress(progress(view, services.config.weights))


def _resume(request: Request, view: JobView) -> int:
    """After which version to begin: the id that the client saw last, 0 for the whole history."""
    given = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    if not given:
        return 0
    if not (given.isascii() and given.isdigit() and len(given) < 20 and int(given) <= view.version):
        raise invalid("Last-Event-ID", f"must be a version of this job, 0 to {view.version}")
    return int(given)


async def _shed() -> AsyncGenerator[bytes, None]:
    # Jitter, so that all who were sent away don't come back at once.
    yield frames.retry(random.randint(2000, 8000))  # noqa: S311  # no secret


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
