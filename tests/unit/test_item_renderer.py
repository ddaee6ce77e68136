"""How many calls of a runner are rendered at once, and that they are rendered off the event loop."""

import asyncio
import os
import threading
from functools import partial

import pytest

from artifacts.lineage import Lineage, embed_lineage, lineage_of, read_lineage
from runners import item_renderer
from runners.attempt import AttemptBuffer
from runners.fake_renderer import FakeRenderer
from runners.faults import FaultPlan
from runners.item_renderer import ItemRenderer
from runners.selection import SelectedEngine
from runners.threads import UnboundedThreadExecutor
from tests.kit import History, eventually

PLACES = (os.cpu_count() or 1) + 1


def renderer() -> ItemRenderer:
    """A renderer; what it renders doesn't matter here."""
    return ItemRenderer(FakeRenderer(faults=FaultPlan(), max_pixels=1), UnboundedThreadExecutor())


async def test_about_as_many_calls_run_as_there_are_cores() -> None:
    """Given more calls than places, then the rest wait until one ends."""
    tested, release, lock = renderer(), threading.Event(), threading.Lock()
    running: list[int] = []
    most = 0

    def call(number: int) -> int:
        nonlocal most
        with lock:
            running.append(number)
            most = max(most, len(running))
        release.wait(20)
        with lock:
            running.remove(number)
        return number

    calls = [asyncio.create_task(tested._run_in_thread(partial(call, number))) for number in range(2 * PLACES)]

    async def are_full() -> bool:
        return len(running) == PLACES

    await eventually(are_full, what="a call in each place")
    await asyncio.sleep(0.05)
    release.set()
    assert await asyncio.gather(*calls) == list(range(2 * PLACES))
    assert most == PLACES


async def test_calls_that_hang_block_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a hanging call in every place, then the next one runs beside them after a while."""
    monkeypatch.setattr(item_renderer, "_PLACE_TIMEOUT_S", 0.05)
    tested, release = renderer(), threading.Event()
    hanging = [asyncio.create_task(tested._run_in_thread(lambda: release.wait(20))) for _ in range(PLACES)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(tested._run_in_thread(lambda: "rendered"), 20) == "rendered"
    assert not any(task.done() for task in hanging)
    release.set()
    await asyncio.gather(*hanging)


async def test_no_work_on_a_files_bytes_is_done_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an item without a model, then it is rendered, and its lineage embedded, in another thread."""
    threads: list[threading.Thread] = []

    def observed(body: bytes, lineage: Lineage) -> bytes:
        threads.append(threading.current_thread())
        return embed_lineage(body, lineage)

    monkeypatch.setattr(item_renderer, "embed_lineage", observed)
    job = History(count=1).state
    selected = SelectedEngine(engine="fake", source="fake")
    rendered = await renderer().render(selected, job, "generate", 0, None, AttemptBuffer(job.steps[0]))
    assert read_lineage(rendered.file_bytes) == lineage_of(job, "generate", 0, None)
    assert threads[0] is not threading.current_thread()
