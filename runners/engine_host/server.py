"""What runs in the engine process: `python -m runners.engine_host.server FD`, the socket to its runner.

A thread reads, so that a cancel is heard while a picture is rendered and the runner's end is the end of this process,
too. The main thread works.
"""

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import msgspec
from PIL import Image

from orchestrator.events.steps import Measure, Memory, Rendering
from orchestrator.step_errors import OutOfMemory, ProviderError, StepError, Unexpected
from runners.engines.process import EngineConfig, framed
from runners.engines.protocol import (
    Abandoned,
    Cancel,
    Done,
    FromProcess,
    ImageSpec,
    ItemsFailed,
    MemoryExhausted,
    Opening,
    Pixels,
    Ready,
    Render,
    Stepped,
    ToProcess,
    Work,
)

_log = logging.getLogger(__name__)


class ParentConnection:
    """The runner at the other end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        self._sending = threading.Lock()
        self.work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self.unwanted: set[int] = set()

    def config(self) -> EngineConfig:
        """What it says first."""
        return msgspec.msgpack.decode(self._frame(), type=EngineConfig)

    def listen(self) -> None:
        """Hear what it says, until it has gone; then there is nobody to work for."""
        decoder = msgspec.msgpack.Decoder(ToProcess)
        works = 0
        try:
            while frame := self._frame():
                message = decoder.decode(frame)
                if not isinstance(message, Cancel):
                    works += 1
                    self.unwanted = set()
                    self.work.put(message)
                elif message.work == works:
                    self.unwanted.update(message.items)
        finally:
            os._exit(0)

    def say(self, message: FromProcess) -> None:
        """Tell it something."""
        with self._sending:
            self._connection.sendall(framed(message))

    def _frame(self) -> bytes:
        return self._file.read(int.from_bytes(self._file.read(4), "big"))


class ProgressReporter:
    """Tells the runner of one piece of work (a `messages.Watch`)."""

    def __init__(self, parent: ParentConnection, items: int) -> None:
        self._runner = parent
        self._befell: list[ImageSpec] = []
        self.open = set(range(items))

    def opening(self) -> None:
        """Tell that a model is still being opened."""
        self._runner.say(Opening())

    def stepped(self, items: list[int], done: int, of: int) -> None:
        """Tell of a step; raises `Abandoned` when none of the items is wanted any more."""
        if self._runner.unwanted.issuperset(items):
            raise Abandoned
        self._runner.say(Stepped(items=items, done=done, of=of))

    def short(self, items: list[int], size: int, measure: Measure | None, memory: Memory | None) -> None:
        """Tell that memory ran out, and what is tried next."""
        self._runner.say(MemoryExhausted(items=items, size=size, next=measure, memory=memory))

    def pixels(self, item: int, image: Image.Image, rendering: Rendering, memory: Memory | None) -> None:
        """Hand a picture over."""
        self.open.discard(item)
        self._runner.say(Pixels.of(item, image, rendering, memory))

    def inject(self, spec: ImageSpec) -> None:
        """Let happen what a test asked for, once."""
        if spec in self._befell:
            return
        self._befell.append(spec)
        match spec.injected:
            case "oom":
                raise MemoryError
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                while True:
                    time.sleep(3600)


RenderFunction = Callable[[Work, ProgressReporter], None]
"""Does some work. May raise `StepError`, `Abandoned`, and whatever a library raises."""


def serve(descriptor: int, begin: Callable[[EngineConfig], tuple[Ready, RenderFunction]]) -> None:
    """Work for the runner behind a socket until it goes."""
    # What ends a service often goes to every process of its group; this one ends when its runner does.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as connection:
        parent = ParentConnection(connection)
        ready, render = begin(parent.config())
        threading.Thread(target=parent.listen, name="runner", daemon=True).start()
        parent.say(ready)
        while True:
            parent.say(Done(unfit=_run(parent, parent.work.get(), render)))


def _run(parent: ParentConnection, work: Work, render: RenderFunction) -> bool:
    """Do some work, and tell what failed; answers whether something befell it that nobody foresaw."""
    watch = ProgressReporter(parent, len(work.specs) if isinstance(work, Render) else 1)
    try:
        render(work, watch)
    except Abandoned:
        return False
    except StepError as error:
        failure = error
    except MemoryError:
        failure = OutOfMemory("the image did not fit into the memory")
    except Exception as error:  # noqa: BLE001  # a library may raise anything
        _log.exception("an engine broke")
        failure = Unexpected(error)
    else:
        failure = Unexpected(RuntimeError())  # an engine that leaves items out has a bug
    if watch.open:
        parent.say(
            ItemsFailed(
                items=sorted(watch.open),
                error_code=failure.error_code,
                message=str(failure),
                retryable=failure.retryable,
            )
        )
    return bool(watch.open) and isinstance(failure, Unexpected)


def begin(config: EngineConfig) -> tuple[Ready, RenderFunction]:
    """Import what this process is for; where that can't be, every piece of work fails and says why."""
    try:
        from runners.engine_host.host import EngineHost  # noqa: PLC0415  # torch takes seconds, and need not be there

        engine_host = EngineHost(config)
    except ImportError as error:
        why = f"this runner can't use models ({error}); install the extra: pip install 'dream-forge[diffusers]'"
    except ProviderError as error:
        why = str(error)
    else:
        return Ready(versions=engine_host.versions, device=engine_host.device_name), engine_host.render

    def refuse(_work: Work, _watch: ProgressReporter) -> None:
        raise ProviderError(why)

    return Ready(versions={}, device="none"), refuse


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="engine process: %(levelname)s %(name)s %(message)s")
    serve(int(sys.argv[1]), begin)
