"""Merges a process's transitions into few commits.

What arrives while one call is in flight goes out together in the next. After a call with several transitions, the next
one waits a little for as many: each call has a price of its own, for this process and the server.

While another process holds a partition's lock, a call carries one partition's transitions only, so that waiting for one
lock never holds others.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from uuid import UUID

import msgspec

from eventstore.database import retry_until_available
from eventstore.errors import DatabaseUnavailable
from eventstore.integrity.chain import partition_of
from eventstore.log import Ack, Append, AppendOutcome, Batch, BatchOutcome, Defer, Log
from eventstore.notifier import LOG_CHANNEL, Notifier, queue_channel
from eventstore.supervision import SupervisedTask

_MAX_TRANSITIONS_PER_CALL = 200
_BUSY_GATHER_S = 0.005
"""How long a call waits until it has as many transitions as the one before it."""

_SINGLE_PARTITION_CALLS = 20
"""How many calls keep to one partition after a contended one."""


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One atomic change of a stream: events, and how the command that led to them is settled."""

    append: Append
    settle: Ack | Defer | None = None


class _PendingTransition(msgspec.Struct, frozen=True):
    transition: Transition
    answer: asyncio.Future[AppendOutcome]


class Committer:
    """The one committer of a process. `stop` may be called twice; a commit after it raises `DatabaseUnavailable`.

    task: writes, and starts again if it fails; callers that waited then get `DatabaseUnavailable`.
    """

    def __init__(self, log: Log, notifier: Notifier) -> None:
        self._log = log
        self._notifier = notifier
        self._pending: deque[_PendingTransition] = deque()
        self._arrived = asyncio.Event()
        self._apart = 0
        self._last_size = self._wanted = 1
        self.task = SupervisedTask("committer", self._run)
        self._stopped = False

    async def commit(self, transition: Transition) -> AppendOutcome:
        """Write a transition, merged with others. Waits while the database is unavailable; nothing is written twice.

        Cancelled before it was sent, it is never written; later, it may be.
        """
        if self._stopped:
            raise DatabaseUnavailable("nothing is written any more, since the process stops")
        self.task.start()
        pending = _PendingTransition(transition, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        if len(self._pending) >= self._wanted:
            self._arrived.set()
        try:
            return await pending.answer
        except asyncio.CancelledError:
            # While the database is unavailable, cancelled transitions would otherwise accumulate.
            with suppress(ValueError):
                self._pending.remove(pending)
            raise

    async def commit_batch(self, batch: Batch) -> BatchOutcome:
        """Write a subscription's batch in a call of its own, since its unit of acceptance is the partition.

        Not repeated here: after `DatabaseUnavailable` the subscription reads its checkpoints again.
        """
        answers = await self._log.commit(batch)
        self._notifier.notify(_changed_channels(batch))
        return answers

    async def stop(self) -> None:
        """Write what is pending, for two seconds at most, then stop."""
        self._stopped = True
        self._arrived.set()
        await self.task.stop(grace_s=2)
        for pending in self._pending:
            pending.answer.cancel()

    async def _run(self) -> None:
        while self._pending or not self._stopped:
            if not self._pending:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            try:
                partitions = await retry_until_available("committer", self._log.partitions)
            except Exception as error:  # noqa: BLE001  # each caller gets it; the committer continues
                _fail_pending(self._pending, error)
                self._pending.clear()
                continue
            if not self._apart:
                await self._gather()
            pending_transitions = list(self._pending)
            try:
                if batch_pending := self._next_batch(partitions):
                    await self._commit_pending(batch_pending)
            except Exception as error:
                # Unknown whether they were written. Later transitions wait for the next start.
                _fail_pending(
                    pending_transitions,
                    DatabaseUnavailable(f"the committer failed ({type(error).__name__}); try again"),
                )
                raise

    async def _gather(self) -> None:
        """Wait a little until as many transitions are pending as the last call had."""
        if len(self._pending) >= self._last_size or self._stopped:
            return
        self._wanted = self._last_size
        self._arrived.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_BUSY_GATHER_S):
                await self._arrived.wait()
        self._wanted = 1

    def _next_batch(self, partitions: int) -> list[_PendingTransition]:
        """The next call's transitions: each stream once, one partition's only while locks are contended."""
        batch_pending: dict[UUID, _PendingTransition] = {}
        left: deque[_PendingTransition] = deque()
        only: int | None = None
        while self._pending and len(batch_pending) < _MAX_TRANSITIONS_PER_CALL:
            pending = self._pending.popleft()
            if pending.answer.done():  # cancelled before it was sent
                continue
            stream = pending.transition.append.stream
            partition = partition_of(stream, partitions)
            if stream in batch_pending or (only is not None and partition != only):
                left.append(pending)
                continue
            batch_pending[stream] = pending
            if self._apart > 0:
                only = partition
        left.extend(self._pending)
        self._pending = left
        return list(batch_pending.values())

    async def _commit_pending(self, batch_pending: list[_PendingTransition]) -> None:
        transitions = [pending.transition for pending in batch_pending]
        self._last_size = len(transitions)
        batch = Batch(
            appends=[t.append for t in transitions],
            acks=[t.settle for t in transitions if type(t.settle) is Ack],
            defers=[t.settle for t in transitions if type(t.settle) is Defer],
        )
        try:
            answers = await retry_until_available("committer", lambda: self._log.commit(batch))
        except asyncio.CancelledError:
            for pending in batch_pending:
                pending.answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001  # its caller gets it; the committer continues
            if len(batch_pending) == 1:
                _fail_pending(batch_pending, error)
                return
            # One transition's error must not reject the others of its call.
            for pending in batch_pending:
                await self._commit_pending([pending])
            return
        self._apart = _SINGLE_PARTITION_CALLS if answers.contended else max(0, self._apart - 1)
        for pending in batch_pending:
            if not pending.answer.done():
                pending.answer.set_result(answers.streams[pending.transition.append.stream])
        self._notifier.notify(_changed_channels(batch))


def _changed_channels(batch: Batch) -> set[str]:
    """Whom a batch concerns: the readers of the log, and the consumers of the queues that it puts commands into."""
    queues = {send.queue for send in batch.sends} | {defer.queue for defer in batch.defers}
    return {*map(queue_channel, queues), *([LOG_CHANNEL] if batch.appends else [])}


def _fail_pending(pending_transitions: Iterable[_PendingTransition], error: Exception) -> None:
    for pending in pending_transitions:
        if not pending.answer.done():
            pending.answer.set_exception(error)
