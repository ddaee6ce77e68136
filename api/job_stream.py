"""The live stream of a job: its history from where the client left off, then every event as it comes.

history ─▶ wait for the tailer ─▶ the new events, then progress ─▶ … ─▶ job.finish, a last progress, the end
"""

from collections.abc import AsyncGenerator
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from api import frames
from api.errors import invalid
from api.inputs import included, job_id, moment
from api.jobs import first_since, load
from api.services import Services
from api.sse import EventStream, HeartbeatTimer, pieces
from eventstore.errors import EventStoreError
from projections.job_view import JobView
from projections.progress import progress

_PAGE = 500


async def stream(request: Request) -> Response:
    """GET /v1/jobs/{id}/progress/stream."""
    services: Services = request.app.state.services
    view = await load(request)
    after = await _resume(request, view)
    if after >= view.version and view.terminal:
        return Response(status_code=204)
    content = follow(services, job_id(request), after, steps_apart="step" in included(request))
    return EventStream(services, content)


async def follow(services: Services, job: UUID, after: int, *, steps_apart: bool) -> AsyncGenerator[bytes, None]:
    """The frames of a job's stream after a version, to the job's end."""
    first = frames.retry(frames.RETRY_MS)  # within the first block that tells anything
    view: JobView | None = None
    heartbeat = HeartbeatTimer(services.config.sse_heartbeat_s)
    async with services.tailer.follow(job) as wake_signal:
        while not services.stopping.is_set():
            version = 0 if view is None else view.version
            try:
                events = await services.tailer.after(job, version, limit=_PAGE)
                view = await services.queries.fold_onto(view, events)
            except EventStoreError:
                return  # the client comes back, and resumes
            new = (event for event in events if event.version > after)
            for piece in pieces(frames.of_event(event, steps_apart=steps_apart) for event in new):
                yield first + piece
                first = b""
            if len(events) == _PAGE:
                continue
            if view is None:
                return
            beat = heartbeat.beat()
            if beat:
                yield frames.HEARTBEAT
            if events or beat:
                yield first + frames.of_progress(progress(view, services.config.weights))
                first = b""
            if view.terminal:
                return
            await wake_signal.wait(heartbeat.left)


async def _resume(request: Request, view: JobView) -> int:
    """After which version to begin: the id that the client saw last, else from a time on, else the whole history."""
    services: Services = request.app.state.services
    since = moment(request, "since_ts")
    given = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    if not given:
        return 0 if since is None else await first_since(services, view, since) - 1
    if not (given.isascii() and given.isdigit() and len(given) < 20 and int(given) <= view.version):
        raise invalid("Last-Event-ID", f"must be a version of this job, 0 to {view.version}")
    return int(given)
