"""Bugs in the protocol, planted one at a time. The simulation must find each."""

from collections.abc import Sequence

from msgspec.structs import replace

from eventstore.committer import Transition
from eventstore.log import Ack, AppendOutcome, Batch, BatchOutcome, CheckpointMove, Defer
from orchestrator.decisions import FailAttempt, FailStart, HandBackStep, JobCommand, RecordItems, StaleAttempt
from orchestrator.events import DomainEvent
from orchestrator.state import JobState, StepState
from tests.simulation.connection import SimulatedCommitter, batch_of
from tests.simulation.episode import Parts
from tests.simulation.runner import Run, Runner
from tests.simulation.storage import Message, Observer, Storage


class AcknowledgesFirst(SimulatedCommitter):
    """Settles the command before the event that it led to is appended."""

    async def commit(self, transition: Transition) -> AppendOutcome:
        """In two commits."""
        whole = batch_of(transition)
        if transition.settle is not None:
            await self._repeating_log.commit(Batch(acks=whole.acks, defers=whole.defers))
        return (await self._repeating_log.commit(Batch(appends=whole.appends))).streams[transition.append.stream]


class SendsAfterMove(SimulatedCommitter):
    """Sends a reaction's commands in a separate commit, after the checkpoint has moved."""

    async def commit_batch(self, batch: Batch) -> BatchOutcome:
        """In two commits."""
        answers = await self._log.commit(replace(batch, sends=()))
        await self._log.commit(Batch(sends=batch.sends))
        return answers


class SendsBeforeMove(SimulatedCommitter):
    """Sends a reaction's commands in a separate commit, before the checkpoint moves."""

    async def commit_batch(self, batch: Batch) -> BatchOutcome:
        """In two commits."""
        await self._log.commit(Batch(sends=batch.sends))
        return await self._log.commit(replace(batch, sends=()))


class MovesWithoutCompare(Storage):
    """Moves checkpoints without comparing their positions."""

    def is_at_checkpoint(self, move: CheckpointMove) -> bool:  # noqa: ARG002  # that is the bug
        """True for every position."""
        return True


class MovesPastRejectedAppend(Storage):
    """Moves a checkpoint although the reaction's append was rejected."""

    def commit(self, batch: Batch, now: float) -> BatchOutcome:
        """Commit the appends, then the rest."""
        appended = super().commit(Batch(appends=batch.appends), now)
        rejected = {stream for stream, answer in appended.streams.items() if not answer.committed}
        settled = [one for one in (*batch.acks, *batch.defers) if one.stream not in rejected]
        rest = super().commit(
            Batch(
                sends=batch.sends,
                acks=[one for one in settled if type(one) is Ack],
                defers=[one for one in settled if type(one) is Defer],
                moves=batch.moves,
            ),
            now,
        )
        return replace(rest, streams=appended.streams)


class IgnoresClaimToken(Storage):
    """Lets every runner settle and extend a message that it has ever claimed."""

    def owned(self, token: Ack) -> Message | None:
        """Ignores the token."""
        return self.messages[token.queue].get(token.msg_id)


class ForgetsClaims(Storage):
    """Returns claims before they are on disk: a database crash, here at every seventh claim, undoes the last ones."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(observer)
        self._claims = 0
        self._loose: list[Message] = []

    def claim(self, slots: int, now: float, visibility: float) -> list[Message]:
        """Claim, possibly after a crash."""
        self._claims += 1
        if self._claims % 7 == 0:
            for message in self._loose:
                message.read_ct -= 1
                message.visible_at = now
        claimed = super().claim(slots, now, visibility)
        self._loose = [self.messages[one.queue][one.msg_id] for one in claimed]
        return claimed

    def commit(self, batch: Batch, now: float) -> BatchOutcome:
        """A commit also makes earlier claims durable."""
        self._loose.clear()
        return super().commit(batch, now)


class Unfenced(Runner):
    """Continues as the current attempt instead of being fenced."""

    async def _execute(self, run: Run, state: JobState, command: JobCommand) -> tuple[JobState, list[DomainEvent]]:
        try:
            return await super()._execute(run, state, command)
        except StaleAttempt:
            if not isinstance(command, RecordItems | FailAttempt | HandBackStep):
                raise
            state = await run.jobs.load(state.job_id)
            current = replace(command, attempt=state.step(command.step_id).attempt)
            return await super()._execute(run, state, current)


class RendersAgain(Runner):
    """Renders every item again in a new attempt."""

    def _missing(self, state: JobState, step: StepState) -> Sequence[int]:  # noqa: ARG002  # that is the bug
        return range(state.generate.count)


class RetriesForever(Runner):
    """Retries a step that cannot start without a limit."""

    async def _execute(self, run: Run, state: JobState, command: JobCommand) -> tuple[JobState, list[DomainEvent]]:
        if isinstance(command, FailStart):
            command = replace(command, max_attempts=1000)
        return await super()._execute(run, state, command)


class AcknowledgesWhenFenced(Runner):
    """Acknowledges its command when another runner started the step first: it may be the only command left."""

    async def _fenced_at_start(self, run: Run) -> None:
        await run.jobs.settle(run.claim.ack())


PLANTED_BUGS = {
    "acknowledges before it appends": Parts(committer=AcknowledgesFirst),
    "sends after the move": Parts(committer=SendsAfterMove),
    "sends before the move": Parts(committer=SendsBeforeMove),
    "moves without comparing": Parts(storage=MovesWithoutCompare),
    "moves past a rejected append": Parts(storage=MovesPastRejectedAppend),
    "ignores claim tokens": Parts(storage=IgnoresClaimToken),
    "forgets claims": Parts(storage=ForgetsClaims),
    "does not fence": Parts(runner=Unfenced),
    "renders items again": Parts(runner=RendersAgain),
    "retries forever": Parts(runner=RetriesForever),
    "acknowledges when fenced": Parts(runner=AcknowledgesWhenFenced),
}
