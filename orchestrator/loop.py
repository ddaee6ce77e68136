"""The loop that runs the reactions over the log, exactly once each.

events ─▶ fold each job ─▶ react ─▶ commands and job.finish ─▶ one commit with the checkpoint's move
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

from eventstore import codec
from eventstore.committer import Committer
from eventstore.events import Event, Recorded
from eventstore.log import Append, Batch, Log, Move, Moved, Send
from eventstore.outbox import Command
from orchestrator.decisions import decide
from orchestrator.reactions import REACTED, Reaction, RunStep, react
from orchestrator.state import JobState, apply
from orchestrator.transact import append, extended


class Orchestrator:
    """The handler of the subscription `orchestrator`. actor: this process, kept in the events' meta."""

    name = "orchestrator"

    def __init__(self, log: Log, committer: Committer, actor: str) -> None:
        self._log = log
        self._committer = committer
        self._actor = actor

    async def handle(self, events: Sequence[Recorded], moves: Sequence[Move]) -> Mapping[int, Moved] | None:
        """React to the events; None if none of them has a reaction."""
        due = [event for event in events if event.category == "job" and event.code in REACTED]
        if not due:
            return None
        histories = await self._log.streams(list({event.stream_id for event in due}))
        appends: list[Append] = []
        sends: list[Send] = []
        for job_id, history in histories.items():
            versions = {event.version for event in due if event.stream_id == job_id}
            appended, sent = self._react(history, versions)
            appends.extend(appended)
            sends.extend(sent)
        answers = await self._committer.react(Batch(appends=appends, sends=sends, moves=moves))
        return answers.moves

    async def move(self, moves: Sequence[Move]) -> Mapping[int, Moved]:
        """Move checkpoints past events that had no reaction."""
        return (await self._committer.react(Batch(moves=moves))).moves

    def _react(self, history: Sequence[Recorded], versions: set[int]) -> tuple[list[Append], list[Send]]:
        """Reactions are drawn from the history up to each event, and decided on its end, where they are appended."""
        reactions: list[Reaction] = []
        state: JobState | None = None
        for event in history:
            fact = codec.fact(event)
            state = apply(state, fact)
            if event.version in versions and fact.body is not None:
                reaction = react(state, fact.body)
                if reaction is not None:
                    reactions.append(reaction)
        if state is None:
            return [], []
        sends: list[Send] = []
        events: list[Event] = []
        head = state
        for reaction in reactions:
            if isinstance(reaction, RunStep):
                sends.append(self._send(head, reaction.step_id))
                continue
            bodies = decide(state, reaction)
            if bodies:
                more = append(state, bodies, self._actor)
                events.extend(more.events)
                state = extended(state, more)
        if not events:
            return [], sends
        whole = Append(stream=head.job_id, tenant=head.tenant, expected=head.version, events=tuple(events))
        return [whole], sends

    def _send(self, state: JobState, step_id: UUID) -> Send:
        step = state.step(step_id)
        command = Command(
            job_id=state.job_id,
            step_id=step_id,
            step=step.name,
            version=state.version,
            traceparent=state.cause.traceparent,
        )
        return Send(stream=state.job_id, queue=step.name, message=command)
