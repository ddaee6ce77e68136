"""The live stream of a job: its history after the client's last event, then every event as it comes.

history ─▶ wait for the tailer ─▶ new events, then progress ─▶ … ─▶ job.finish, the last progress, end
"""

from collections.abc import AsyncGenerator
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from api import frames
from api.access import READ_SCOPES
from api.errors import invalid_field_error
from api.event_stream import EventStreamResponse, HeartbeatTimer, StreamEndpoint, join_frames
from api.inputs import comma_separated_query, last_event_id, path_job_id, time_query
from api.jobs import first_version_since, load_job_view
from api.openapi.jobs import STREAM_JOB
from api.routing import ApiRoute
from api.services import Services
from eventstore.errors import EventStoreError
from projections.job_view import JobView
from projections.progress import job_progress

_EVENTS_PER_READ = 500


async def open_job_stream(request: Request, services: Services) -> Response:
    """GET /v1/jobs/{id}/progress/stream."""
    view = await load_job_view(request, services)
    after = await _resume_version(request, services, view)
    if after >= view.version and view.terminal:
        return Response(status_code=204)
    content = follow_job(
        services, path_job_id(request), after, separate_steps="step" in comma_separated_query(request, "include")
    )
    return EventStreamResponse(services, content)


async def follow_job(
    services: Services, job: UUID, after_version: int, *, separate_steps: bool
) -> AsyncGenerator[bytes, None]:
    """The frames of a job's stream after a version, to the job's end."""
    first = frames.retry_line(frames.RECONNECT_DELAY_MS)  # part of the first frame with data
    view: JobView | None = None
    heartbeat = HeartbeatTimer(services.config.sse_heartbeat_s)
    async with services.tailer.follow(job) as wake_signal:
        while not services.stopping.is_set():
            version = 0 if view is None else view.version
            try:
                events = await services.tailer.stream_events_after(job, version, limit=_EVENTS_PER_READ)
                view = await services.queries.fold_events_onto_view(view, events)
            except EventStoreError:
                return  # the client reconnects and resumes
            new = (event for event in events if event.version > after_version)
            for chunk in join_frames(frames.job_event_frame(event, separate_steps=separate_steps) for event in new):
                yield first + chunk
                first = b""
            if len(events) == _EVENTS_PER_READ:
                continue
            if view is None:
                return
            due = heartbeat.take_if_due()
            if due:
                yield frames.HEARTBEAT_FRAME
            if events or due:
                yield first + frames.progress_frame(job_progress(view, services.config.weights))
                first = b""
            if view.terminal:
                return
            await wake_signal.wait(heartbeat.seconds_left)


async def _resume_version(request: Request, services: Services, view: JobView) -> int:
    """The version after which to begin: Last-Event-ID, else before `since_ts`, else 0."""
    since = time_query(request, "since_ts")
    given = last_event_id(request)
    if given is None:
        return 0 if since is None else await first_version_since(services, view, since) - 1
    if not (given.isascii() and given.isdigit() and len(given) < 20 and int(given) <= view.version):
        raise invalid_field_error("Last-Event-ID", f"must be a version of this job, 0 to {view.version}")
    return int(given)


ROUTES = [
    ApiRoute(
        "GET",
        "/v1/jobs/{job_id}/progress/stream",
        StreamEndpoint("job", open_job_stream),
        READ_SCOPES,
        STREAM_JOB,
        head=False,
    )
]
