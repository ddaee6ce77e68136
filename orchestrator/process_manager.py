"""The loop that runs the reactions over the log, exactly once each.

events ─▶ fold each job ─▶ react ─▶ commands and job.finish ─▶ one commit with the checkpoint's move
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from uuid import UUID

from eventstore.committer import Committer
from eventstore.errors import EventRejected, UndecodableEvent
from eventstore.events import NewEvent, RecordedEvent
from eventstore.log import Append, Batch, CheckpointMove, CheckpointMoveOutcome, Log, Send
from orchestrator import codec
from orchestrator.decisions import decide
from orchestrator.events import JobCreated
from orchestrator.quarantine import is_quarantined
from orchestrator.quarantine_log import Quarantine
from orchestrator.reactions import REACTION_CODES, Reaction, RunStep, react
from orchestrator.service import prepare_append
from orchestrator.state import JobState, apply
from orchestrator.step_command import StepCommand


class Orchestrator:
    """The handler of the subscription `orchestrator`. actor: this process, kept in the events' meta."""

    name = "orchestrator"

    def __init__(self, log: Log, committer: Committer, actor: str) -> None:
        self._log = log
        self._committer = committer
        self._actor = actor
        self._quarantine = Quarantine(log, actor)

    async def handle(
        self, events: Sequence[RecordedEvent], moves: Sequence[CheckpointMove]
    ) -> Mapping[int, CheckpointMoveOutcome] | None:
        """React to the events; None if none of them has a reaction."""
        jobs = [event for event in events if event.category == "job"]
        # Read even where nothing is to be done: what can't be read is passed only when its job is set aside.
        undecodable_jobs = _first_undecodable_by_job(jobs)
        due = [event for event in jobs if event.code in REACTION_CODES]
        if not due and not undecodable_jobs:
            return None
        histories = await self._read_histories(due, undecodable_jobs.keys())
        appends: list[Append] = []
        sends: list[Send] = []
        for job_id, history in histories.items():
            if is_quarantined(history):
                continue
            if job_id in undecodable_jobs:
                raise undecodable_jobs[job_id]
            to_react = [event for event in due if event.stream_id == job_id]
            try:
                appended, sent = self._react_to_versions(history, {event.version for event in to_react})
            except Exception as error:  # rules may break in any way on what they were not written for
                if is_quarantined(await self._log.read_stream(job_id)):
                    continue
                raise EventRejected(to_react[0], error) from error
            appends.extend(appended)
            sends.extend(sent)
        answers = await self._committer.commit_batch(Batch(appends=appends, sends=sends, moves=moves))
        return answers.moves

    async def _read_histories(
        self, due: Sequence[RecordedEvent], undecodable: AbstractSet[UUID]
    ) -> dict[UUID, Sequence[RecordedEvent]]:
        """The histories that the reactions need. That of a new job is its first event, whatever else came since."""
        created = {event.stream_id: [event] for event in due if event.code == JobCreated.code}
        others = {event.stream_id for event in due if event.code != JobCreated.code} | undecodable
        return {**created, **await self._log.read_streams(list(others))}

    async def commit_moves(self, moves: Sequence[CheckpointMove]) -> Mapping[int, CheckpointMoveOutcome]:
        """Move checkpoints past events that had no reaction."""
        return (await self._committer.commit_batch(Batch(moves=moves))).moves

    async def quarantine(self, rejected: EventRejected) -> bool:
        """Set the job of an event aside."""
        event = rejected.event
        return await self._quarantine.quarantine_job(
            event.stream_id, event.tenant, reader=self.name, at_version=event.version, reason=rejected.reason
        )

    def _react_to_versions(
        self, history: Sequence[RecordedEvent], versions: set[int]
    ) -> tuple[list[Append], list[Send]]:
        """Reactions are drawn from the history up to each event, and decided on its end, where they are appended."""
        reactions: list[Reaction] = []
        state: JobState | None = None
        for event in history:
            decoded = codec.decode_event(event)
            state = apply(state, decoded)
            if event.version in versions and decoded.body is not None:
                reaction = react(state, decoded.body)
                if reaction is not None:
                    reactions.append(reaction)
        if state is None:
            return [], []
        sends: list[Send] = []
        events: list[NewEvent] = []
        head_state = state
        for reaction in reactions:
            if isinstance(reaction, RunStep):
                send = self._step_send(head_state, reaction.step_id)
                if send not in sends:  # a release asks for what an event before it asks for already
                    sends.append(send)
                continue
            bodies = decide(state, reaction)
            if bodies:
                new_append, state = prepare_append(state, bodies, self._actor)
                events.extend(new_append.events)
        if not events:
            return [], sends
        whole_append = Append(
            stream=head_state.job_id,
            category="job",
            tenant=head_state.tenant,
            expected=head_state.version,
            events=tuple(events),
        )
        return [whole_append], sends

    def _step_send(self, state: JobState, step_id: UUID) -> Send:
        step = state.step(step_id)
        command = StepCommand(job_id=state.job_id, step_id=step_id, step=step.name, version=state.version)
        return Send(stream=state.job_id, queue=step.name, message=command)


def _first_undecodable_by_job(events: Sequence[RecordedEvent]) -> dict[UUID, EventRejected]:
    """Of each job the first event that can't be decoded."""
    found: dict[UUID, EventRejected] = {}
    for event in events:
        try:
            codec.decode_event(event)
        except UndecodableEvent as error:
            found.setdefault(event.stream_id, EventRejected(event, error))
    return found
