"""A model in memory of schema.sql and of the object store."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol
from uuid import UUID

import msgspec
from msgspec.structs import replace

from eventstore.events import NewEvent, RecordedEvent
from eventstore.integrity.chain import STREAM_GENESIS, event_hash, partition_of
from eventstore.log import (
    Ack,
    Append,
    AppendOutcome,
    Batch,
    BatchOutcome,
    CheckpointMove,
    CheckpointMoveOutcome,
    Defer,
    Send,
    Verdict,
)
from orchestrator import codec
from orchestrator.events import DecodedEvent
from orchestrator.state import JobState, apply
from orchestrator.step_command import StepCommand
from projections.job_view import ArtifactView, JobView

PARTITIONS = 2
QUEUES = ("upscale", "generate")


class Observer(Protocol):
    """Receives what is written."""

    def appended(self, before: JobState | None, after: JobState, decoded: DecodedEvent) -> None:
        """An event was appended."""

    def sent(self, command: StepCommand) -> None:
        """A command was sent."""


class Message(msgspec.Struct):
    """A command in a queue, visible from a time on."""

    queue: str
    msg_id: int
    read_ct: int
    visible_at: float
    command: StepCommand


class Storage:
    """All durable state. Every method is one SQL statement or one call of the object store."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.partitions: list[list[RecordedEvent]] = [[] for _ in range(PARTITIONS)]
        self.streams: dict[UUID, list[RecordedEvent]] = {}
        self.states: dict[UUID, list[JobState]] = {}
        self.checkpoints: dict[str, list[int]] = {}
        self.messages: dict[str, dict[int, Message]] = {queue: {} for queue in QUEUES}
        self.objects: dict[str, str] = {}
        self.harmed: set[str] = set()
        self.views: dict[UUID, JobView] = {}
        self.artifacts: dict[tuple[UUID, int], ArtifactView] = {}
        self._last_id = 0

    # The log --------------------------------------------------------------------------------------

    def commit(self, batch: Batch, now: float) -> BatchOutcome:
        """As `eventstore.commit`: each stream is checked alone, but with moves the partition is the unit."""
        heads = [len(partition) for partition in self.partitions]
        held = {move.partition for move in batch.moves if self.is_at_checkpoint(move)}
        rejected = {move.partition for move in batch.moves} - held
        verdicts = {one.stream: self.check_expected_version(one) for one in batch.appends}
        skipped = {stream for stream, verdict in verdicts.items() if verdict != "accepted"}
        if batch.moves:
            rejected |= {partition_of(stream, PARTITIONS) for stream in skipped}
        for one in batch.appends:
            if verdicts[one.stream] == "accepted" and partition_of(one.stream, PARTITIONS) in rejected:
                verdicts[one.stream] = "rejected"
                skipped.add(one.stream)
            elif verdicts[one.stream] == "accepted":
                self._append(one)
        self._dispatch(batch, skipped, rejected, now)
        moved = {move.partition: self._move(move, heads, held, rejected) for move in batch.moves}
        streams = {
            stream: AppendOutcome(verdict, len(self.streams.get(stream, ()))) for stream, verdict in verdicts.items()
        }
        return BatchOutcome(streams, moved, contended=False)

    def check_expected_version(self, append: Append) -> Verdict:
        """As `eventstore.commit`, the SQL function."""
        history = self.streams.get(append.stream, [])
        if len(history) == append.expected:
            return "accepted"
        there = [one.event_id for one in history[append.expected : append.expected + len(append.events)]]
        return "already_committed" if there == [one.event_id for one in append.events] else "conflict"

    def is_at_checkpoint(self, move: CheckpointMove) -> bool:
        """Whether a checkpoint is at the move's start."""
        return self.checkpoints[move.subscription][move.partition] == move.start

    def after(self, cursor: Mapping[int, int], limit: int) -> dict[int, list[RecordedEvent]]:
        """As `Log.read_after`."""
        found = {partition: self.partitions[partition][at : at + limit] for partition, at in cursor.items()}
        return {partition: events for partition, events in found.items() if events}

    def state(self, stream: UUID) -> JobState:
        """The current state of a job."""
        return self.states[stream][-1]

    def _append(self, append: Append) -> None:
        stream = self.streams.setdefault(append.stream, [])
        states = self.states.setdefault(append.stream, [])
        for event in append.events:
            version = len(stream) + 1
            decoded = codec.decode_event(self._record(append, event, version, stream))
            before = states[-1] if states else None
            after = apply(before, decoded)
            self._observer.appended(before, after, decoded)
            states.append(after)

    def _record(self, append: Append, event: NewEvent, version: int, stream: list[RecordedEvent]) -> RecordedEvent:
        number = partition_of(append.stream, PARTITIONS)
        partition = self.partitions[number]
        recorded = RecordedEvent(
            stream_id=append.stream,
            tenant=append.tenant,
            version=version,
            code=event.code,
            schema_version=event.schema_version,
            ts=event.ts,
            data=event.data,
            meta=event.meta,
            private=event.private,
            partition=number,
            position=len(partition) + 1,
            category=append.category,
            event_id=event.event_id,
            recorded_at=event.ts,
            private_digest=None,
            hash=b"",
            chain=b"",
        )
        recorded = replace(recorded, hash=event_hash(stream[-1].hash if stream else STREAM_GENESIS, recorded))
        stream.append(recorded)
        partition.append(recorded)
        return recorded

    def _move(
        self, move: CheckpointMove, heads: Sequence[int], held: set[int], rejected: set[int]
    ) -> CheckpointMoveOutcome:
        at = self.checkpoints[move.subscription]
        if move.partition in rejected:
            return CheckpointMoveOutcome("rejected" if move.partition in held else "conflict", at[move.partition])
        # A move to the very head covers what this call appended.
        end = len(self.partitions[move.partition]) if move.end == heads[move.partition] else move.end
        at[move.partition] = end
        return CheckpointMoveOutcome("accepted", end)

    # The outbox -----------------------------------------------------------------------------------

    def send(self, queue: str, command: StepCommand, visible_at: float) -> None:
        """Put a message into a queue."""
        self._last_id += 1
        self.messages[queue][self._last_id] = Message(queue, self._last_id, 0, visible_at, command)

    def claimable(self, now: float) -> bool:
        """Whether there is a message to claim."""
        return any(one.visible_at <= now for queue in self.messages.values() for one in queue.values())

    def claim(self, slots: int, now: float, visibility: float) -> list[Message]:
        """As `eventstore.claim`."""
        visible = [one for queue in QUEUES for one in self.messages[queue].values() if one.visible_at <= now]
        for one in visible[:slots]:
            one.read_ct += 1
            one.visible_at = now + visibility
        return [msgspec.structs.replace(one) for one in visible[:slots]]

    def extend(self, tokens: Sequence[Ack], now: float, visibility: float, *, forgotten: bool = False) -> list[bool]:
        """As `eventstore.extend`: which messages the caller still owns. forgotten: a crash undoes the extension."""
        held = [self.owned(token) for token in tokens]
        for one in held:
            if one is not None and not forgotten:
                one.visible_at = now + visibility
        return [one is not None for one in held]

    def owned(self, token: Ack) -> Message | None:
        """The message that a token still owns."""
        message = self.messages[token.queue].get(token.msg_id)
        return message if message is not None and message.read_ct == token.read_ct else None

    def settle(self, token: Ack, now: float) -> None:
        """Acknowledge or defer a message that its token still owns."""
        message = self.owned(token)
        if message is None:
            return
        if isinstance(token, Defer):
            message.visible_at = now + token.delay
            message.read_ct += 1
        else:
            del self.messages[token.queue][token.msg_id]

    def _dispatch(self, batch: Batch, skipped: set[UUID], rejected: set[int], now: float) -> None:
        def history(one: Send | Ack) -> bool:
            return one.stream not in skipped and partition_of(one.stream, PARTITIONS) not in rejected

        for send in filter(history, batch.sends):
            assert isinstance(send.message, StepCommand)
            self._observer.sent(send.message)
            self.send(send.queue, send.message, now + send.delay)
        for token in filter(history, (*batch.acks, *batch.defers)):
            self.settle(token, now)

    # The objects ----------------------------------------------------------------------------------

    def put(self, key: str, body: str) -> str:
        """Write an object unless the key exists. Returns the object of the key."""
        if key not in self.objects:
            self.harmed.discard(key)
        return self.objects.setdefault(key, body)

    def replace(self, key: str, body: str) -> str:
        """Overwrite an object."""
        self.harmed.discard(key)
        self.objects[key] = body
        return body

    def lose(self, key: str) -> None:
        """Remove an object, as an operator might."""
        self.harmed.add(key)
        del self.objects[key]

    def taint(self, key: str) -> None:
        """Replace an object by another, as an operator might."""
        self.harmed.add(key)
        self.objects[key] = f"not {self.objects[key]}"

    # The read model -------------------------------------------------------------------------------

    def project(self, views: Sequence[JobView], moves: Sequence[CheckpointMove]) -> list[int]:
        """As `projector.project`. Returns the partitions that were written."""
        held = [move.partition for move in moves if self.is_at_checkpoint(move)]
        for view in views:
            kept = self.views.get(view.job_id)
            newer = kept is None or view.version > kept.version
            if newer and partition_of(view.job_id, PARTITIONS) in held:
                self.views[view.job_id] = msgspec.structs.replace(view, artifacts=())
                for artifact in view.artifacts:
                    row = self.artifacts.setdefault((artifact.step_id, artifact.item_index), artifact)
                    same = msgspec.structs.replace(row, bytes=artifact.bytes, sha256=artifact.sha256)
                    self.artifacts[artifact.step_id, artifact.item_index] = same
        for move in moves:
            if move.partition in held:
                self.checkpoints[move.subscription][move.partition] = move.end
        return held

    # What an operator does ------------------------------------------------------------------------

    def reacted(self, stream: UUID) -> JobState | None:
        """A job's state at the orchestrator's checkpoint."""
        at = self.checkpoints["orchestrator"][partition_of(stream, PARTITIONS)]
        seen = sum(one.position <= at for one in self.streams[stream])
        return self.states[stream][seen - 1] if seen else None

    def waiting(self) -> Counter[UUID]:
        """The number of messages for each step."""
        return Counter(one.command.step_id for queue in self.messages.values() for one in queue.values())
