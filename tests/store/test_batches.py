"""Items of several attempts in the batches of a real engine process, which dies, hangs and is asked to stop."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from dreamforge.settings import unconfigured_environ
from orchestrator.events import DeviceMemory, MemoryMeasure, Rendering
from orchestrator.step_errors import StepFailure
from runners.engines.batching import BatchScheduler, EngineLostFailure, RunnerStopping
from runners.engines.landscape import paint
from runners.engines.process import EngineConfig, EngineProcess, EngineProcessDied
from runners.engines.protocol import (
    LENGTH_BYTES,
    Enlarge,
    FromProcess,
    ImageSpec,
    ModelRef,
    Pixels,
    Render,
    Sampling,
    encode_frames,
    pixels_size,
)
from runners.faults import InjectedFault
from runners.upscalers.image import ImageUpscaler
from tests.engine_program import LATE
from tests.kit import eventually, project_root

PROGRAM = "tests.engine_program"
ROOT = project_root()


class Told:
    """What an attempt heard, as words."""

    def __init__(self) -> None:
        self.ticks = 0
        self.first_tick = asyncio.Event()
        self.heard: list[str] = []

    def step_done(self, items: list[int], done: int, of: int) -> None:
        assert items
        assert done <= of
        self.ticks += 1
        self.first_tick.set()

    def batch_rendered(self, items: list[int], size: int, memory: DeviceMemory | None) -> None:
        assert memory is not None
        self.heard.append(f"rendered {items} of {size}")

    def memory_exhausted(
        self, items: list[int], size: int, measure: MemoryMeasure | None, memory: DeviceMemory | None
    ) -> None:
        del size, measure, memory
        self.heard.append(f"short {items}")

    def engine_lost(self, items: list[int], reason: str) -> None:
        self.heard.append(f"lost {items}: {reason}")


@asynccontextmanager
async def engine(
    *, batch_max: int = 4, stall_s: float = 20.0, painted: str = os.devnull
) -> AsyncIterator[tuple[BatchScheduler, EngineProcess]]:
    environ = unconfigured_environ() | {"PYTHONPATH": str(ROOT), "PAINTED": painted}
    process = EngineProcess(EngineConfig(), stall_s=stall_s, program=PROGRAM, environ=environ)
    batches = BatchScheduler(process, batch_max=batch_max)
    try:
        yield batches, process
    finally:
        await batches.stop()


def sampling(steps: int = 2, *, size: tuple[int, int] = (32, 24)) -> Sampling:
    model = ModelRef(kind="generator", path="none")
    return Sampling(model=model, width=size[0], height=size[1], steps=steps, guidance=7.0, scheduler=None)


def spec(seed: int, injected: InjectedFault | None = None) -> ImageSpec:
    return ImageSpec(prompt="a harbour", negative_prompt=None, seed=seed, injected=injected)


def late(injected: InjectedFault) -> ImageSpec:
    return ImageSpec(prompt=LATE, negative_prompt=None, seed=9, injected=injected)


def render(shared: Sampling, one: ImageSpec) -> Render:
    return Render(sampling=shared, specs=[one])


def expect_picture(found: Pixels, seed: int, size: tuple[int, int] = (32, 24)) -> None:
    assert found.image().tobytes() == paint("a harbour", seed, size).tobytes()


async def test_what_is_alike_is_rendered_together_whosever_it_is() -> None:
    """Given three attempts, two with the same sampling, then these share a batch, and each hears of its own items."""
    one, two, other = Told(), Told(), Told()
    async with engine() as (batches, _):
        found = await asyncio.gather(
            batches.render(render(sampling(), spec(1)), 0, one),
            batches.render(render(sampling(), spec(2)), 1, one),
            batches.render(render(sampling(3), spec(3)), 5, other),
            batches.render(render(sampling(), spec(4)), 0, two),
        )
    for pixels, seed in zip(found, (1, 2, 3, 4), strict=True):
        expect_picture(pixels, seed)
    assert [pixels.rendering.batch_size for pixels in found] == [3, 3, 1, 3]
    assert one.heard == ["rendered [0, 1] of 3"]
    assert two.heard == ["rendered [0] of 3"]
    assert other.heard == ["rendered [5] of 1"]
    assert one.ticks >= 2


async def test_large_images_pass_both_ways() -> None:
    """Given pixels of several chunks, then the process enlarges what it was sent, and sends all of the result."""
    source = paint("a harbour", 1, (640, 480))
    request = Enlarge(
        model=ModelRef(kind="gan-upscaler", path="none"),
        scale=2,
        strict=True,
        width=source.width,
        height=source.height,
        pixels=source.tobytes(),
        spec=spec(2),
    )
    async with engine() as (batches, _):
        enlarged = await batches.render(request, 0, Told())
        expect_picture(await batches.render(render(sampling(size=(800, 600)), spec(1)), 0, Told()), 1, (800, 600))
    assert enlarged.image().tobytes() == ImageUpscaler().upscale(source, 2).tobytes()


def test_pixels_are_sent_as_they_are() -> None:
    """They are neither copied into a message nor parsed out of one: that would hold the runner's event loop."""
    pixels = bytes(64 * 64 * 3)
    rendering = Rendering(engine="painter", device="cpu", dtype="uint8", versions={})
    message = Pixels(item=0, width=64, height=64, pixels=pixels, rendering=rendering, memory=None)
    head, sent = encode_frames(message)
    assert sent is pixels
    received = msgspec.msgpack.decode(head[LENGTH_BYTES:], type=Pixels)
    assert received == replace(message, pixels=b"")
    assert pixels_size(received) == len(pixels)


async def test_a_batch_holds_no_more_than_it_may() -> None:
    async with engine(batch_max=2) as (batches, _):
        told = Told()
        found = await asyncio.gather(*(batches.render(render(sampling(), spec(n)), n, told) for n in range(5)))
    assert [pixels.rendering.batch_size for pixels in found] == [2, 2, 2, 2, 1]


async def test_a_batch_waits_for_steps_that_are_being_started() -> None:
    """Given a step that begins while another's item waits already, then they share a batch."""
    async with engine() as (batches, _):
        arrived = batches.announce_request()
        first = asyncio.create_task(batches.render(render(sampling(), spec(1)), 0, Told()))
        await asyncio.sleep(0.03)
        second = asyncio.create_task(batches.render(render(sampling(), spec(2)), 0, Told()))
        asyncio.get_running_loop().call_soon(arrived)
        assert [(await one).rendering.batch_size for one in (first, second)] == [2, 2]


async def test_who_breaks_the_engine_fails_nobody_else() -> None:
    """Given a batch in which one job's image kills the process, then the others' are rendered, and that one fails."""
    killer, stranger = Told(), Told()
    async with engine() as (batches, process):
        bad, good = await asyncio.gather(
            batches.render(render(sampling(), spec(1, "kill")), 3, killer),
            batches.render(render(sampling(), spec(2)), 0, stranger),
            return_exceptions=True,
        )
        assert isinstance(bad, EngineLostFailure)
        assert bad.retryable
        assert isinstance(good, Pixels)
        expect_picture(good, 2)
        died = "it was ended by SIGKILL"
        assert stranger.heard == [f"lost [0]: {died}", "rendered [0] of 1"]
        assert killer.heard == [f"lost [3]: {died}", f"lost [3]: {died}"]
        expect_picture(await batches.render(render(sampling(), spec(5)), 0, Told()), 5)
        assert process.pid is not None


async def test_what_was_delivered_before_the_process_died_is_kept() -> None:
    """Given a batch whose last image kills the process, then the others are handed over before the loss is told."""
    other, killer = Told(), Told()
    async with engine() as (batches, _):
        *good, bad = await asyncio.gather(
            *(batches.render(render(sampling(), spec(seed)), seed, other) for seed in (1, 2)),
            batches.render(render(sampling(), late("kill")), 3, killer),
            return_exceptions=True,
        )
    for pixels, seed in zip(good, (1, 2), strict=True):
        assert isinstance(pixels, Pixels)
        assert pixels.rendering.batch_size == 3
        expect_picture(pixels, seed)
    assert isinstance(bad, EngineLostFailure)
    died = "it was ended by SIGKILL"
    assert other.heard == ["rendered [1, 2] of 3"]
    assert killer.heard == [f"lost [3]: {died}", f"lost [3]: {died}"]


async def test_a_single_jobs_pictures_are_kept_likewise() -> None:
    told = Told()
    async with engine() as (batches, _):
        good, bad = await asyncio.gather(
            batches.render(render(sampling(), spec(1)), 0, told),
            batches.render(render(sampling(), late("kill")), 1, told),
            return_exceptions=True,
        )
    assert isinstance(good, Pixels)
    assert isinstance(bad, EngineLostFailure)
    assert told.heard == ["rendered [0] of 2", "lost [1]: it was ended by SIGKILL"]


@pytest.mark.parametrize("heard", [True, False])
async def test_what_a_dead_process_had_sent_is_read_to_the_end(tmp_path: Path, heard: bool) -> None:  # noqa: FBT001
    """Given a process killed with a message of ours unread, or written to since, then all its pictures arrive.

    Its end is then no end of file, but a reset connection or a broken pipe.
    """
    painted = tmp_path / "painted"
    arrived: list[int] = []
    async with engine(painted=str(painted)) as (_, process):

        def hear(message: FromProcess) -> None:
            if not isinstance(message, Pixels):
                return
            arrived.append(message.item)
            if message.item == 0:
                wait_until(painted.exists)  # nothing is read meanwhile
                kill(process, heard=heard)

        work = Render(sampling=sampling(), specs=[spec(1), spec(2), spec(3), late("hang")])
        with pytest.raises(EngineProcessDied, match="SIGKILL"):
            await process.run(work, hear)
    assert arrived == [0, 1, 2]


def kill(process: EngineProcess, *, heard: bool) -> None:
    """End it, and tell it something: while it can't hear any more, or before."""
    pid = process.pid
    assert pid is not None
    if heard:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: has_ended(pid))
        process.cancel([3])
    else:
        os.kill(pid, signal.SIGSTOP)
        process.cancel([3])
        os.kill(pid, signal.SIGKILL)


def has_ended(pid: int) -> bool:
    """Is a process gone, or waiting to be asked how it ended?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(probe: Callable[[], bool]) -> None:
    """Block the event loop until it is so."""
    while not probe():
        time.sleep(0.005)


async def test_a_standstill_is_ended() -> None:
    """Given an engine that hangs, then its process is killed, and the next image is rendered by another."""
    async with engine(stall_s=1.5) as (batches, process):
        told = Told()
        expect_picture(await batches.render(render(sampling(), spec(1)), 0, told), 1)
        before = process.pid
        with pytest.raises(EngineLostFailure, match=r"it said nothing for 1\.5 s"):
            await batches.render(render(sampling(), spec(2, "hang")), 1, told)
        expect_picture(await batches.render(render(sampling(), spec(3)), 2, told), 3)
        assert process.pid != before


async def test_memory_that_runs_out_fails_the_item_and_not_the_process() -> None:
    async with engine() as (batches, process):
        expect_picture(await batches.render(render(sampling(), spec(1)), 0, Told()), 1)
        before = process.pid
        with pytest.raises(StepFailure) as failed:
            await batches.render(render(sampling(), spec(2, "oom")), 1, Told())
        assert (failed.value.error_code, failed.value.retryable) == ("oom", True)
        expect_picture(await batches.render(render(sampling(), spec(3)), 2, Told()), 3)
        assert process.pid == before


async def test_what_nobody_wants_any_more_ends_within_a_step() -> None:
    """Given a batch of 50,000 steps whose items are all cancelled, then the next is rendered by the same process."""
    async with engine() as (batches, process):
        told = Told()
        long = [asyncio.create_task(batches.render(render(sampling(50_000), spec(n)), n, told)) for n in range(2)]
        await told.first_tick.wait()
        before = process.pid
        waiting = asyncio.create_task(batches.render(render(sampling(), spec(8)), 8, told))
        await asyncio.sleep(0)
        for task in (*long, waiting):
            task.cancel()
        expect_picture(await batches.render(render(sampling(), spec(9)), 9, told), 9)
        assert process.pid == before


async def test_what_is_cancelled_before_the_process_has_started_is_not_rendered() -> None:
    """Given 50,000 steps that nobody wants by the time that the process can hear of it, then the next is rendered."""
    async with engine() as (batches, _):
        told = Told()
        long = asyncio.create_task(batches.render(render(sampling(50_000), spec(1)), 1, told))
        await asyncio.sleep(0.01)
        long.cancel()
        expect_picture(await batches.render(render(sampling(), spec(9)), 9, told), 9)
        assert told.heard == ["rendered [9] of 1"]


async def test_whose_image_fails_fails_nobody_elses() -> None:
    """Given a batch of two jobs in which one's image runs out of memory, then the other's is rendered."""
    async with engine() as (batches, process):
        hungry, stranger = Told(), Told()
        bad, good = await asyncio.gather(
            batches.render(render(sampling(), spec(1, "oom")), 0, hungry),
            batches.render(render(sampling(), spec(2)), 0, stranger),
            return_exceptions=True,
        )
        assert isinstance(bad, StepFailure)
        assert bad.error_code == "oom"
        assert isinstance(good, Pixels)
        expect_picture(good, 2)
        assert stranger.heard == ["rendered [0] of 1"]
        assert process.pid is not None


async def test_a_process_that_something_unforeseen_befell_is_replaced() -> None:
    async with engine() as (batches, process):
        expect_picture(await batches.render(render(sampling(), spec(1)), 0, Told()), 1)
        before = process.pid
        with pytest.raises(StepFailure, match="an unexpected ZeroDivisionError"):
            await batches.render(render(sampling(0), spec(2)), 1, Told())
        expect_picture(await batches.render(render(sampling(), spec(3)), 2, Told()), 3)
        assert process.pid != before


async def test_a_lost_batch_of_which_nobody_can_be_told_fails() -> None:
    """Given an attempt that breaks as it hears of the loss, then it fails, and does not wait for ever."""

    class Broken(Told):
        def engine_lost(self, items: list[int], reason: str) -> None:
            raise RuntimeError(f"{items}: {reason}")

    async with engine() as (batches, _):
        with pytest.raises(StepFailure, match="an unexpected RuntimeError"):
            await asyncio.wait_for(batches.render(render(sampling(), spec(1, "kill")), 0, Broken()), 60)
        expect_picture(await batches.render(render(sampling(), spec(2)), 0, Told()), 2)


async def test_a_process_that_died_idle_costs_nobody_anything() -> None:
    async with engine() as (batches, process):
        told = Told()
        expect_picture(await batches.render(render(sampling(), spec(1)), 0, told), 1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await eventually(lambda: _is_gone(process), what="its end")
        expect_picture(await batches.render(render(sampling(), spec(2)), 1, told), 2)
        assert told.heard == ["rendered [0] of 1", "rendered [1] of 1"]


async def test_what_ends_a_whole_group_leaves_the_batch_to_be_finished() -> None:
    """Given SIGTERM and SIGINT, as a supervisor sends them to all processes of a service."""
    async with engine() as (batches, process):
        told = Told()
        first = asyncio.create_task(batches.render(render(sampling(20), spec(1)), 0, told))
        await told.first_tick.wait()
        assert process.pid is not None
        for ending in (signal.SIGTERM, signal.SIGINT):
            os.kill(process.pid, ending)
        expect_picture(await first, 1)


async def test_a_process_whose_runner_dies_with_messages_unread_ends() -> None:
    """Its runner's end is then no end of file, but a reset connection."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", PROGRAM, str(theirs.fileno())]
    process = await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno()], cwd=ROOT)
    theirs.close()
    for message in (EngineConfig(), render(sampling(), spec(1))):
        ours.sendall(b"".join(encode_frames(message)))
    await eventually(lambda: _holds_an_image(ours), what="a picture")
    ours.close()
    assert await asyncio.wait_for(process.wait(), 60) == 0


async def _holds_an_image(connection: socket.socket) -> bool:
    with suppress(BlockingIOError):
        return len(connection.recv(2**20, socket.MSG_PEEK | socket.MSG_DONTWAIT)) > 32 * 24 * 3
    return False


async def _is_gone(process: EngineProcess) -> bool:
    return process.pid is None


async def test_a_runner_that_stops_finishes_what_is_under_way() -> None:
    """And rejects what waits, in a way that hands it back."""
    async with engine(batch_max=1) as (batches, _):
        told = Told()
        first = asyncio.create_task(batches.render(render(sampling(20), spec(1)), 0, told))
        second = asyncio.create_task(batches.render(render(sampling(20), spec(2)), 1, told))
        await told.first_tick.wait()
        batches.stop_accepting()
        expect_picture(await first, 1)
        for rejected in (second, batches.render(render(sampling(), spec(3)), 2, told)):
            with pytest.raises(RunnerStopping):
                await rejected


async def test_the_process_ends_with_its_runner() -> None:
    async with engine() as (batches, process):
        await batches.render(render(sampling(), spec(1)), 0, Told())
        pid = process.pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
