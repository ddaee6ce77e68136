"""Tasks that start again: at once after a long life, and later and later while they fail at once."""

import asyncio

import pytest

from eventstore import supervision
from eventstore.database import Backoff
from eventstore.supervision import SupervisedTask


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the module takes for the time, in its only item."""
    now = [1000.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    monkeypatch.setattr(supervision, "time", Clock)
    return now


async def pauses(clock: list[float], monkeypatch: pytest.MonkeyPatch, lives: list[float]) -> list[int]:
    """Fail after each of these lives; how many failures each pause counted before it."""
    counted: list[int] = []

    class Counting(Backoff):
        async def wait(self) -> None:
            counted.append(self.failures)
            self.failures += 1

    monkeypatch.setattr(supervision, "Backoff", Counting)
    left, ended = list(lives), asyncio.Event()

    async def work() -> None:
        if left:
            clock[0] += left.pop(0)
            raise RuntimeError("it fails")
        ended.set()

    supervised = SupervisedTask("work", work)
    supervised.start()
    await ended.wait()
    await supervised.stop()
    return counted


async def test_pauses_grow_while_it_fails_at_once(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure after more than ten seconds of work is the first of its kind again."""
    assert await pauses(clock, monkeypatch, [0, 0, 0, 11, 0]) == [0, 1, 2, 0, 1]


async def test_a_failure_shows_for_ten_seconds(clock: list[float]) -> None:
    """Readiness tells of it, though the task runs again."""
    failed, again = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        if failed.is_set():
            again.set()
            return
        failed.set()
        raise RuntimeError("it fails")

    supervised = SupervisedTask("work", work)
    supervised.start()
    await again.wait()
    assert supervised.failure == "RuntimeError: it fails"
    clock[0] += 11
    await supervised.check()
    await supervised.stop()
