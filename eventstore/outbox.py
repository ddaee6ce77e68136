"""The outbox: commands waiting in pgmq's queues, claimed with our own statements.

A command is delivered at least once; what it causes happens once, since its handler folds the log first. `read_ct` is
the token of a claim's owner: whoever lost the lease can no longer touch the message.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import msgspec
import structlog

from eventstore.database import Database, Row
from eventstore.errors import DatabaseUnavailable
from eventstore.ids import new_id
from eventstore.log import Ack, Defer

_MIN_MSG_ID_AGE_S = 5.0
"""How long a process believes where a queue's messages begin."""

_IDLE_MIN_MSG_ID_AGE_S = 15.0
"""Likewise after a claim that found nothing, so that a large fleet of idle processes costs little."""

_MAX_UNREADABLE_CLAIMS = 3
"""How many claims a command that can't be read stays in its queue for."""

_MAX_COMMIT_DELAY_S = 70.0
"""After how long a message whose id was drawn has been committed: no statement takes longer."""

SEATS = 4
"""How many of a queue's processes listen for its commands at most; the others poll."""
_SEAT_LAPSE_S = 25.0
_FORGET_TIMEOUT_S = 2.0

_log = structlog.get_logger(__name__)


class Command(Protocol):
    """What a queue carries, decoded by the application."""

    @property
    def stream(self) -> UUID:
        """The stream that it is about."""


C = TypeVar("C", bound=Command)


class Claim(msgspec.Struct, Generic[C], frozen=True, kw_only=True):
    """A claimed command. It is this process's until its visibility ends, unless it is extended.

    expires_at_s: on this process's monotonic clock, when it ends at the latest if nothing extends it.
    """

    queue: str
    msg_id: int
    read_ct: int
    enqueued_at: datetime
    command: C
    expires_at_s: float

    def ack(self) -> Ack:
        """What deletes the message."""
        return Ack(stream=self.command.stream, queue=self.queue, msg_id=self.msg_id, read_ct=self.read_ct)

    def defer(self, delay: float) -> Defer:
        """What gives the message back, to be shown again after `delay` seconds."""
        return Defer(
            stream=self.command.stream, queue=self.queue, msg_id=self.msg_id, read_ct=self.read_ct, delay=delay
        )


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The processes that serve a queue of ours. idle: how many have a free slot. seat: ours, or None."""

    idle: int
    seat: int | None


class Outbox(Generic[C]):
    """Claims of one process. Every method may raise `DatabaseUnavailable`; all are safe to repeat.

    queues: earlier ones first. decode: a command from its JSON text; raises `msgspec.MsgspecError` if it can't be read.
    """

    def __init__(self, database: Database, queues: Sequence[str], decode: Callable[[str], C]) -> None:
        self._database = database
        self.queues = list(queues)
        self._decode = decode
        self._process = new_id()
        self._found_commands = False
        self._reset_min_msg_ids()

    async def claim(self, max_claims: int, visibility_s: float) -> list[Claim[C]]:
        """Claim at most `max_claims` commands for `visibility_s` seconds: earlier queues first, oldest first."""
        expires_at_s = time.monotonic() + visibility_s
        try:
            await self._refresh_min_msg_ids()
            rows = await self._database.execute_once(
                "select * from eventstore.claim($1, $2, $3, $4)",
                self.queues,
                self._min_msg_ids,
                max_claims,
                visibility_s,
                seconds=_statement_timeout_s(visibility_s),
            )
        except DatabaseUnavailable:
            self._reset_min_msg_ids()
            raise
        self._found_commands = bool(rows)
        claims = []
        for row in rows:
            try:
                command = self._decode(row["message"])
            except msgspec.MsgspecError:
                await self._archive_unreadable(row)
                continue
            given = {name: row[name] for name in ("queue", "msg_id", "read_ct", "enqueued_at")}
            claims.append(Claim(**given, command=command, expires_at_s=expires_at_s))
        return claims

    async def report_process(self, slots: int, free_slots: int, *, wants_seat: bool) -> Fleet:
        """Report this process, and learn of those that serve the same queues."""
        [row] = await self._database.execute_once(
            "select * from eventstore.report_process($1, $2, $3, $4, $5, $6, $7)",
            self._process,
            self.queues,
            slots,
            free_slots,
            wants_seat,
            SEATS,
            _SEAT_LAPSE_S,
        )
        return Fleet(idle=row["idle"], seat=row["seat"])

    async def forget_process(self) -> None:
        """Give up this process's seat, since it claims no more."""
        await self._database.execute_once(
            "select eventstore.forget_process($1)", self._process, seconds=_FORGET_TIMEOUT_S
        )

    async def extend(self, claims: Sequence[Claim[C]], visibility_s: float) -> list[Claim[C]]:
        """Keep claims for `visibility_s` seconds more. Returns those that were lost: stop working on them."""
        rows = await self._database.execute_once(
            "select queue, msg_id, read_ct from eventstore.extend($1, $2, $3, $4)",
            [claim.queue for claim in claims],
            [claim.msg_id for claim in claims],
            [claim.read_ct for claim in claims],
            visibility_s,
            seconds=_statement_timeout_s(visibility_s),
        )
        kept = {(row["queue"], row["msg_id"], row["read_ct"]) for row in rows}
        return [claim for claim in claims if (claim.queue, claim.msg_id, claim.read_ct) not in kept]

    async def _archive_unreadable(self, row: Row) -> None:
        """Leave an unreadable command to other processes for a few claims, perhaps of a newer release; then archive it.

        Otherwise it would be delivered without end. In pgmq's archive it is kept.
        """
        message = {"queue": row["queue"], "msg_id": row["msg_id"]}
        if row["read_ct"] < _MAX_UNREADABLE_CLAIMS:
            _log.warning("unreadable command", **message)
            return
        _log.error("unreadable command archived", **message)
        await self._database.execute_once(
            "select eventstore.put_aside($1, $2, $3)", row["queue"], row["msg_id"], row["read_ct"]
        )

    def _reset_min_msg_ids(self) -> None:
        """Search from id 0 again: a database that was unavailable may come from a backup, with lower ids."""
        self._min_msg_ids = self._bases = self._lowest = [0] * len(self.queues)
        self._lowest_at = self._min_msg_ids_at = 0.0

    async def _refresh_min_msg_ids(self) -> None:
        # A claim that starts at the first live row skips the dead ones. A message with a lower id may still appear, for
        # ids are drawn before commit: the minimum is read again every few seconds, from a base below which no id can
        # appear any more. The base is the minimum of `_MAX_COMMIT_DELAY_S` ago.
        now = time.monotonic()
        if now - self._min_msg_ids_at < (_MIN_MSG_ID_AGE_S if self._found_commands else _IDLE_MIN_MSG_ID_AGE_S):
            return
        rows = await self._database.read("select eventstore.floors($1, $2) as floors", self.queues, self._bases)
        self._min_msg_ids = rows[0]["floors"]
        self._min_msg_ids_at = now
        if now - self._lowest_at >= _MAX_COMMIT_DELAY_S:
            self._bases = list(map(min, self._lowest, self._min_msg_ids))
            self._lowest, self._lowest_at = self._min_msg_ids, now


def _statement_timeout_s(visibility_s: float) -> float:
    """How long to wait for an answer: a dead connection must not cost the leases of all held claims."""
    return max(2.0, visibility_s / 4)
