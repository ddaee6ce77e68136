"""The loop that runs the reactions over the log, exactly once each.

events ─▶ fold each job ─▶ react ─▶ commands and job.finish ─▶ one commit with the checkpoint's move
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from uuid import UUID

import msgspec

from eventstore.committer import Committer
from eventstore.errors import EventRejected, UndecodableEvent
from eventstore.events import NewEvent, RecordedEvent
from eventstore.log import Append, Batch, CheckpointMove, CheckpointMoveOutcome, Log, Send
from orchestrator import codec
from orchestrator.decisions import decide
from orchestrator.quarantine import is_quarantined, last_quarantine_mark
from orchestrator.quarantine_log import Quarantine
from orchestrator.reactions import REACTION_CODES, Reaction, RunStep, react
from orchestrator.service import prepare_append
from orchestrator.state import JobState, apply
from orchestrator.state_cache import StateCache
from orchestrator.step_command import StepCommand


class _JobTurn(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn does with one job. events: to fold onto the base. due: the versions that may have a reaction."""

    base: JobState | None
    events: Sequence[RecordedEvent]
    due: set[int]


class _JobOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What follows for one job. state: after the last event."""

    state: JobState
    last_event: RecordedEvent
    append: Append | None
    sends: Sequence[Send]


class Orchestrator:
    """The handler of the subscription `orchestrator`. actor: this process, kept in the events' meta."""

    name = "orchestrator"

    def __init__(self, log: Log, committer: Committer, actor: str) -> None:
        self._log = log
        self._committer = committer
        self._actor = actor
        self._quarantine = Quarantine(log, actor)
        self._states = StateCache()

    async def handle(
        self, events: Sequence[RecordedEvent], moves: Sequence[CheckpointMove]
    ) -> Mapping[int, CheckpointMoveOutcome] | None:
        """React to the events; None if none of them has a reaction."""
        groups = _events_by_job(events)
        # Read even where nothing is to be done: what can't be read is passed only when its job is set aside.
        undecodable_jobs = _first_undecodable_by_job(groups)
        turns = await self._turns(groups, undecodable_jobs)
        outcomes = [outcome for turn in turns if (outcome := await self._react(turn)) is not None]
        if not undecodable_jobs and not any(turn.due for turn in turns):
            self._keep_states(outcomes)
            return None
        batch = Batch(
            appends=[outcome.append for outcome in outcomes if outcome.append is not None],
            sends=[send for outcome in outcomes for send in outcome.sends],
            moves=moves,
        )
        answers = await self._committer.commit_batch(batch)
        accepted = {partition for partition, move in answers.moves.items() if move.verdict == "accepted"}
        self._keep_states([outcome for outcome in outcomes if outcome.last_event.partition in accepted])
        return answers.moves

    async def _turns(
        self, groups: Mapping[UUID, Sequence[RecordedEvent]], undecodable_jobs: Mapping[UUID, EventRejected]
    ) -> list[_JobTurn]:
        """The jobs to fold: by their events alone where the state before is known, else by their histories.

        Raises the `EventRejected` of a job whose event can't be decoded, unless it is set aside.
        """
        turns: list[_JobTurn] = []
        unknown: dict[UUID, set[int]] = {}
        for job_id, group in groups.items():
            base = self._states.state_before(group[0])
            due = {event.version for event in group if event.code in REACTION_CODES}
            if job_id not in undecodable_jobs and _may_follow(base, group):
                turns.append(_JobTurn(base=base, events=group, due=due))
            elif due or job_id in undecodable_jobs:
                unknown[job_id] = due
        for job_id, history in (await self._log.read_streams(list(unknown))).items():
            if is_quarantined(history):
                continue
            if job_id in undecodable_jobs:
                raise undecodable_jobs[job_id]
            turns.append(_JobTurn(base=None, events=history, due=unknown[job_id]))
        return turns

    async def _react(self, turn: _JobTurn) -> _JobOutcome | None:
        """What follows from a job's events; None if there is nothing to fold, or the job is set aside meanwhile."""
        try:
            return self._fold_and_react(turn)
        except Exception as error:  # rules may break in any way on what they were not written for
            first_due = next((event for event in turn.events if event.version in turn.due), None)
            if first_due is None or is_quarantined(await self._log.read_stream(first_due.stream_id)):
                return None
            raise EventRejected(first_due, error) from error

    def _keep_states(self, outcomes: Sequence[_JobOutcome]) -> None:
        for outcome in outcomes:
            if outcome.append is None:
                self._states.put(outcome.state, outcome.last_event)
            else:
                self._states.forget(outcome.state.job_id)

    async def commit_moves(self, moves: Sequence[CheckpointMove]) -> Mapping[int, CheckpointMoveOutcome]:
        """Move checkpoints past events that had no reaction."""
        return (await self._committer.commit_batch(Batch(moves=moves))).moves

    async def quarantine(self, rejected: EventRejected) -> bool:
        """Set the job of an event aside."""
        event = rejected.event
        return await self._quarantine.quarantine_job(
            event.stream_id, event.tenant, reader=self.name, at_version=event.version, reason=rejected.reason
        )

    def _fold_and_react(self, turn: _JobTurn) -> _JobOutcome | None:
        """Reactions are drawn from the state after each event, and decided on the last one, where they are appended."""
        reactions: list[Reaction] = []
        head_state = turn.base
        for event in turn.events:
            decoded = codec.decode_event(event)
            head_state = apply(head_state, decoded)
            if event.version in turn.due and decoded.body is not None:
                reaction = react(head_state, decoded.body)
                if reaction is not None:
                    reactions.append(reaction)
        if head_state is None:
            return None
        sends: list[Send] = []
        events: list[NewEvent] = []
        state = head_state
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
        append = Append(
            stream=head_state.job_id,
            category="job",
            tenant=head_state.tenant,
            expected=head_state.version,
            events=tuple(events),
        )
        return _JobOutcome(state=state, last_event=turn.events[-1], append=append if events else None, sends=sends)

    def _step_send(self, state: JobState, step_id: UUID) -> Send:
        step = state.step(step_id)
        command = StepCommand(job_id=state.job_id, step_id=step_id, step=step.name, version=state.version)
        return Send(stream=state.job_id, queue=step.name, message=command)


def _events_by_job(events: Sequence[RecordedEvent]) -> dict[UUID, list[RecordedEvent]]:
    """The events of jobs, by job, in order."""
    groups: dict[UUID, list[RecordedEvent]] = {}
    for event in events:
        if event.category == "job":
            groups.setdefault(event.stream_id, []).append(event)
    return groups


def _may_follow(base: JobState | None, group: Sequence[RecordedEvent]) -> bool:
    """Whether a job's events can be folded onto the state before them, without its history.

    The marks of a quarantine are judged by the whole history.
    """
    known = base is not None or group[0].version == 1
    gapless = group[-1].version - group[0].version == len(group) - 1
    return known and gapless and last_quarantine_mark(group) is None


def _first_undecodable_by_job(groups: Mapping[UUID, Sequence[RecordedEvent]]) -> dict[UUID, EventRejected]:
    """Of each job the first event that can't be decoded."""
    found: dict[UUID, EventRejected] = {}
    for event in chain.from_iterable(groups.values()):
        try:
            codec.decode_event(event)
        except UndecodableEvent as error:
            found.setdefault(event.stream_id, EventRejected(event, error))
    return found
