"""Claims commands, keeps their leases, and runs them, as many at once as the process has slots.

claim ─▶ run ─▶ (heartbeats meanwhile) ─▶ settled by the run itself, in the commit of what it caused
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import structlog

from eventstore.database import Backoff
from eventstore.errors import DatabaseUnavailable
from eventstore.notifier import Notifier, queue_channel
from eventstore.outbox import SEATS, Fleet
from eventstore.supervision import SupervisedTask
from orchestrator.step_command import StepClaim, StepOutbox
from runners.metrics import LEASES_LOST

RunClaim = Callable[[StepClaim], Awaitable[None]]

_POLL_INTERVAL_S = 1.0
"""Seconds between polls for claims: a dead runner's lease ends without a notification."""

_FLEET_POLLS_PER_S = 64
"""How often all processes with free slots poll together at most: the polls of a larger fleet are further apart."""

_REPORT_INTERVAL_S = 10.0
_SEAT_DELAY_S = 0.005
"""How much later a seat claims than the one before it, so that one command does not make all of them claim."""

_KEEP_SEAT_S = 2.0
"""How long a process whose slots are full keeps its seat: another would have to connect first."""

_LEASE_MARGIN_S = 3.0
"""What is left of a lease for the next owner to claim and start."""

_CLAIM_PAUSE_AFTER_OUTAGE_S = 6.0
"""How long leases that ended in an outage are left to their owners, who look for the database every five seconds."""

_SETTLE_GRACE_S = 0.2
_log = structlog.get_logger(__name__)


def visibility_s(lease_s: float) -> float:
    """How long a claim hides its message. The lease is the promise from a runner's death to the start elsewhere."""
    return max(lease_s - _LEASE_MARGIN_S, lease_s / 2)


class Consumer:
    """Runs claimed commands. `stop` ends `run`; the runs under way are awaited by it.

    slots: commands run at once. lease_s: seconds from a runner's death to the step's start elsewhere, at most.
    """

    def __init__(self, outbox: StepOutbox, notifier: Notifier, run: RunClaim, *, slots: int, lease_s: float) -> None:
        self._outbox = outbox
        self._notifier = notifier
        self._run = run
        self._slots = slots
        self._visibility = visibility_s(lease_s)
        self._active: dict[StepClaim, asyncio.Task[None]] = {}
        self._wake_signal = notifier.add_wake_signal(*map(queue_channel, outbox.queues), remote_delay_s=None)
        self._fleet = Fleet(idle=1, seat=None)
        self._commands_may_wait = True
        self._report_at = self._free_at = -math.inf
        self._stopping = False
        self.heartbeat = SupervisedTask("heartbeat", self._extend_leases_forever)
        self.available = False

    async def run(self) -> None:
        """Claim and run steps until stopped, then wait for what is under way."""
        self.heartbeat.start()
        backoff = Backoff()
        away_since = math.inf
        claims_from = 0.0
        try:
            while not self._stopping:
                try:
                    if not self.available:
                        # What was held through an outage is taken back before anything is claimed, here and elsewhere.
                        await self._extend_leases()
                        if time.monotonic() - away_since > self._visibility:
                            claims_from = time.monotonic() + _CLAIM_PAUSE_AFTER_OUTAGE_S
                        away_since = math.inf
                    if time.monotonic() >= claims_from:
                        await self._claim_for_free_slots()
                    await self._report_process()
                except DatabaseUnavailable as error:
                    if backoff.failures == 0:
                        _log.warning("no claims while the database is away", error=str(error))
                        away_since = time.monotonic()
                    self.available = self._wake_signal.takes_all = False
                    await backoff.wait()
                    continue
                self.available = True
                backoff.reset()
                await self._wake_signal.wait(self._poll_interval_s())
            with suppress(DatabaseUnavailable):
                await self._outbox.forget_process()
            if self._active:
                await asyncio.wait(self._active.values())
        finally:
            await self.heartbeat.stop()
            for task in self._active.values():
                task.cancel()
            await asyncio.gather(*self._active.values(), return_exceptions=True)
            self._notifier.remove_wake_signal(self._wake_signal)

    @property
    def ready(self) -> bool:
        """Did the last claim reach the queues, and will there be a next?"""
        return self.available and not self._stopping

    def stop(self) -> None:
        """Claim no more commands. A second call does nothing."""
        self._stopping = True
        self._wake_signal.takes_all = False
        self._notifier.notify_others(self._wake_signal.take_untold())
        self._wake_signal.wake()

    @property
    def _free_slots(self) -> int:
        return self._slots - len(self._active)

    def _poll_interval_s(self) -> float:
        fleet_interval_s = max(_POLL_INTERVAL_S, self._fleet.idle / _FLEET_POLLS_PER_S)
        return fleet_interval_s * random.uniform(0.75, 1.0)  # noqa: S311  # jitter, no secret

    async def _report_process(self) -> None:
        """Report the free slots every few seconds, and take a seat among those that listen, or leave it to others."""
        now = time.monotonic()
        if self._free_slots > 0:
            self._free_at = now
        wants_seat = self._notifier.can_listen and (self._fleet.idle <= SEATS or now - self._free_at < _KEEP_SEAT_S)
        if now < self._report_at and (wants_seat or self._fleet.seat is None):
            return
        self._fleet = await self._outbox.report_process(self._slots, self._free_slots, wants_seat=wants_seat)
        self._report_at = now + _REPORT_INTERVAL_S * random.uniform(0.75, 1.0)  # noqa: S311  # jitter, no secret
        seat = self._fleet.seat
        self._notifier.set_remote_delay(self._wake_signal, None if seat is None else seat * _SEAT_DELAY_S)

    async def _claim_for_free_slots(self) -> None:
        free_slots = max(0, self._free_slots)
        untold = self._wake_signal.take_untold()
        claims = await self._outbox.claim(free_slots, self._visibility) if free_slots else []
        # A claim that leaves a slot free has found the queues empty.
        self._commands_may_wait = len(claims) == free_slots
        self._wake_signal.takes_all = not self._commands_may_wait
        if self._commands_may_wait:
            self._notifier.notify_others(untold | self._wake_signal.take_untold())
        for claim in claims:
            task = asyncio.create_task(self._run_guarded(claim), name=f"run-{claim.command.job_id}")
            self._active[claim] = task
            task.add_done_callback(partial(self._on_run_done, claim))

    def _on_run_done(self, claim: StepClaim, _task: asyncio.Task[None]) -> None:
        del self._active[claim]
        if self._commands_may_wait:
            self._wake_signal.wake()

    async def _run_guarded(self, claim: StepClaim) -> None:
        try:
            await self._run(claim)
        except Exception:  # noqa: BLE001  # one run's trouble must not end the others
            # The message shows again when its lease ends; attempts are counted from the log.
            _log.exception("a command's run broke", job_id=str(claim.command.job_id), step=claim.command.step)

    async def _extend_leases_forever(self) -> None:
        # At once: it may have failed just before, and leases end.
        while True:
            try:
                await self._extend_leases()
                pause = self._visibility / 3
            except DatabaseUnavailable as error:
                _log.warning("heartbeat missed", error=str(error))
                pause = self._visibility / 12
            await asyncio.sleep(pause)

    async def _extend_leases(self) -> None:
        held = list(self._active)
        if not held:
            return
        lost = {
            task: claim
            for claim in await self._outbox.extend(held, self._visibility)
            if (task := self._active.get(claim)) is not None
        }
        if not lost:
            return
        # A run that has just settled its message ends by itself a moment later: that is no loss.
        for task in (await asyncio.wait(lost, timeout=_SETTLE_GRACE_S))[1]:
            LEASES_LOST.inc()
            _log.warning("lease lost", job_id=str(lost[task].command.job_id), step=lost[task].command.step)
            task.cancel()
