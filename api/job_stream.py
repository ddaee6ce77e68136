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
    follower = _Follower(services, job, after_version, separate_steps=separate_steps)
    changed = True
    async with services.tailer.follow(job) as wake_signal:
        with HeartbeatTimer(services.config.sse_heartbeat_s, wake_signal) as heartbeat:
            while not services.stopping.is_set():
                try:
                    chunks = join_frames(await follower.next_frames(heartbeat, changed=changed))
                except EventStoreError:
                    return  # the client reconnects and resumes
                while chunk := next(chunks, b""):  # no frame is kept while the client is idle
                    yield first + chunk
                    first = b""
                if follower.ended:
                    return
                changed = follower.is_behind or await wake_signal.wait()


class _Follower:
    """What one client has been sent of a job. ended: it needs no more. is_behind: there is more to be read at once."""

    __slots__ = ("_feed", "_job", "_progress_sent", "_sent", "_separate_steps", "_tailer", "ended", "is_behind")

    def __init__(self, services: Services, job: UUID, after_version: int, *, separate_steps: bool) -> None:
        self._tailer = services.tailer
        self._job = job
        self._feed = services.feeds.feed_of(job, services.queries, services.config.weights)
        self._separate_steps = separate_steps
        self._sent = after_version
        self._progress_sent = -1
        self.ended = False
        self.is_behind = False

    async def next_frames(self, heartbeat: HeartbeatTimer, *, changed: bool) -> list[bytes]:
        """The frames of new events, then the progress. changed: whether there may be new events."""
        out = await self._new_events() if changed else []
        view = self._feed.view
        if view is None or self.is_behind:
            self.ended = view is None
            return out
        if due := heartbeat.take_if_due():
            out.append(frames.HEARTBEAT_FRAME)
        if self._sent < view.version:
            return out  # another client has seen more than this one: its progress is not told before its events
        if due or self._progress_sent != self._sent:
            out.append(self._feed.progress_frame())
            self._progress_sent = self._sent
        self.ended = view.terminal
        return out

    async def _new_events(self) -> list[bytes]:
        # From where the view is, if that is behind: after a resume it is folded from the beginning.
        start = min(self._sent, self._feed.version)
        events = await self._tailer.stream_events_after(self._job, start, limit=_EVENTS_PER_READ)
        await self._feed.advance(events)
        self.is_behind = len(events) == _EVENTS_PER_READ
        new = [event for event in events if event.version > self._sent]
        self._sent = max(self._sent, events[-1].version if events else 0)
        return [frames.job_event_frame(event, separate_steps=self._separate_steps) for event in new]


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
