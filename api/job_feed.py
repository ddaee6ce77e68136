"""What all subscribers of a job's stream share: its view, folded once, and its progress, encoded once."""

from collections.abc import Sequence
from uuid import UUID
from weakref import WeakValueDictionary

from msgspec.structs import replace

from api import frames
from eventstore.events import RecordedEvent
from projections.job_view import JobView
from projections.progress import StepWeights, job_progress
from projections.queries import JobQueries


class JobFeed:
    """A job as the foremost of its subscribers has seen it. view: None until a history was folded."""

    __slots__ = ("__weakref__", "_progress_frame", "_queries", "_weights", "view")

    def __init__(self, queries: JobQueries, weights: StepWeights | None) -> None:
        self.view: JobView | None = None
        self._queries = queries
        self._weights = weights
        self._progress_frame = b""

    @property
    def version(self) -> int:
        """The version of the view."""
        return 0 if self.view is None else self.view.version

    async def advance(self, events: Sequence[RecordedEvent]) -> None:
        """Fold the events that the view lacks. They follow it, or a version before it."""
        new = [event for event in events if event.version > self.version]
        if not new:
            return
        view = await self._queries.fold_events_onto_view(self.view, new)
        if view is None or view.version <= self.version:
            return  # another subscriber was faster
        if self.view is None or (view.steps, view.artifacts) != (self.view.steps, self.view.artifacts):
            self._progress_frame = b""
        # Without what no frame shows: a process holds one view for each job that is followed.
        self.view = replace(view, params={}, metadata={}) if view.params else view

    def progress_frame(self) -> bytes:
        """The progress of the job at the view's version."""
        if not self._progress_frame and self.view is not None:
            self._progress_frame = frames.progress_frame(job_progress(self.view, self._weights))
        return self._progress_frame


class JobFeeds:
    """The feeds of a process: one for each job that somebody follows, for as long as somebody holds it."""

    def __init__(self) -> None:
        self._feeds: WeakValueDictionary[UUID, JobFeed] = WeakValueDictionary()

    def feed_of(self, job_id: UUID, queries: JobQueries, weights: StepWeights | None) -> JobFeed:
        """The feed of a job."""
        feed = self._feeds.get(job_id)
        if feed is None:
            feed = self._feeds[job_id] = JobFeed(queries, weights)
        return feed
