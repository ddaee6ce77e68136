"""Folded states of open jobs, so that a reaction does not read again the history that its process has seen."""

from collections import OrderedDict
from uuid import UUID

import msgspec
from msgspec.structs import replace

from eventstore.events import RecordedEvent
from eventstore.integrity.chain import event_hash
from orchestrator.events import PersonalText
from orchestrator.state import JobState

_CAPACITY = 10_000


class _Entry(msgspec.Struct, frozen=True):
    """A state, and the hash of the event that it ends with."""

    state: JobState
    hash: bytes


class StateCache:
    """The states that were used last, at most `capacity` of them. They hold no personal text, nor any finished job."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[UUID, _Entry] = OrderedDict()

    def state_before(self, event: RecordedEvent) -> JobState | None:
        """The state that an event follows; None if it isn't there.

        The hash chain tells: after a failover that lost events, another event may bear the version that comes next.
        """
        entry = self._entries.get(event.stream_id)
        if entry is None or entry.state.version != event.version - 1 or event_hash(entry.hash, event) != event.hash:
            return None
        return entry.state

    def put(self, state: JobState, last_event: RecordedEvent) -> None:
        """Keep the state of a job that is open, in place of an earlier one."""
        self.forget(state.job_id)
        if state.outcome is not None:
            return
        self._entries[state.job_id] = _Entry(replace(state, private=PersonalText(), traceparent=None), last_event.hash)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def forget(self, job_id: UUID) -> None:
        """Forget a job's state, if there is one."""
        self._entries.pop(job_id, None)
