"""The main program of the engine process: `python -m runners.engine_host.server FD`, the socket to its runner.

The main thread renders. Another thread reads the socket, so that cancellations are seen during a render, and so that
the process exits when the runner does.
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
from msgspec.structs import replace
from PIL import Image

from orchestrator.events import DeviceMemory, MemoryMeasure, Rendering
from orchestrator.step_errors import OutOfMemory, ProviderError, StepFailure, Unexpected
from runners.engines.process import EngineConfig
from runners.engines.protocol import (
    LENGTH_BYTES,
    Cancel,
    Done,
    FromProcess,
    ImageSpec,
    ItemsFailed,
    MemoryExhausted,
    ModelOpening,
    Pixels,
    Ready,
    Render,
    RenderCancelled,
    StepDone,
    ToProcess,
    Work,
    encode_frames,
    pixels_size,
)

_log = logging.getLogger(__name__)


class ParentConnection:
    """The runner at the other end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        self._sending = threading.Lock()
        self.work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self.cancelled_items: set[int] = set()

    def read_config(self) -> EngineConfig:
        """The first message."""
        return msgspec.msgpack.decode(self._read_frame(), type=EngineConfig)

    def listen(self) -> None:
        """Read messages until the runner closes the socket, then exit the process."""
        decoder = msgspec.msgpack.Decoder(ToProcess)
        work_count = 0
        try:
            while frame := self._read_frame():
                message = decoder.decode(frame)
                if not isinstance(message, Cancel):
                    work_count += 1
                    self.cancelled_items = set()
                    pixels = self._file.read(pixels_size(message))
                    self.work.put(replace(message, pixels=pixels) if pixels else message)
                elif message.work == work_count:
                    self.cancelled_items.update(message.items)
        finally:
            os._exit(0)

    def send(self, message: FromProcess) -> None:
        """Send a message."""
        with self._sending:
            for frame in encode_frames(message):
                self._connection.sendall(frame)

    def _read_frame(self) -> bytes:
        return self._file.read(int.from_bytes(self._file.read(LENGTH_BYTES), "big"))


class ProgressReporter:
    """Sends the progress of one piece of work to the runner (a `protocol.RenderListener`)."""

    def __init__(self, parent: ParentConnection, items: int) -> None:
        self._runner = parent
        self._injected: list[ImageSpec] = []
        self.unanswered = set(range(items))

    def model_still_opening(self) -> None:
        """Report that a model is still being opened."""
        self._runner.send(ModelOpening())

    def step_done(self, items: list[int], done: int, of: int) -> None:
        """Report a step. Raises `RenderCancelled` if all of the items were cancelled."""
        if self._runner.cancelled_items.issuperset(items):
            raise RenderCancelled
        self._runner.send(StepDone(items=items, done=done, of=of))

    def memory_exhausted(
        self, items: list[int], size: int, measure: MemoryMeasure | None, memory: DeviceMemory | None
    ) -> None:
        """Report that memory ran out, and the measure that is tried next."""
        self._runner.send(MemoryExhausted(items=items, size=size, next=measure, memory=memory))

    def image_rendered(self, item: int, image: Image.Image, rendering: Rendering, memory: DeviceMemory | None) -> None:
        """Send an image."""
        self.unanswered.discard(item)
        self._runner.send(Pixels.from_image(item, image, rendering, memory))

    def inject_fault(self, spec: ImageSpec) -> None:
        """Cause the fault that a test asks for, once."""
        if spec in self._injected:
            return
        self._injected.append(spec)
        match spec.injected:
            case "oom":
                raise MemoryError
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                while True:
                    time.sleep(3600)


RenderFunction = Callable[[Work, ProgressReporter], None]
"""Does some work. May raise `StepFailure`, `RenderCancelled`, and any exception of a library."""


def serve(socket_descriptor: int, create_engine: Callable[[EngineConfig], tuple[Ready, RenderFunction]]) -> None:
    """Serve the runner at the other end of a socket until it exits."""
    # A signal often goes to every process of the group; this process must end only when its runner does.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    with socket.socket(fileno=socket_descriptor) as connection:
        parent = ParentConnection(connection)
        ready, render = create_engine(parent.read_config())
        threading.Thread(target=parent.listen, name="runner", daemon=True).start()
        parent.send(ready)
        while True:
            parent.send(Done(restart_needed=_run_work(parent, parent.work.get(), render)))


def _run_work(parent: ParentConnection, work: Work, render: RenderFunction) -> bool:
    """Do some work and report failures. Returns whether an unexpected exception failed items."""
    listener = ProgressReporter(parent, len(work.specs) if isinstance(work, Render) else 1)
    try:
        render(work, listener)
    except RenderCancelled:
        return False
    except StepFailure as error:
        failure = error
    except MemoryError:
        failure = OutOfMemory("the image did not fit into the memory")
    except Exception as error:  # noqa: BLE001  # a library may raise anything
        _log.exception("engine failed unexpectedly")
        failure = Unexpected(error)
    else:
        failure = Unexpected(RuntimeError())  # an engine that leaves items out has a bug
    if listener.unanswered:
        parent.send(
            ItemsFailed(
                items=sorted(listener.unanswered),
                error_code=failure.error_code,
                message=str(failure),
                retryable=failure.retryable,
            )
        )
    return bool(listener.unanswered) and isinstance(failure, Unexpected)


def create_engine(config: EngineConfig) -> tuple[Ready, RenderFunction]:
    """Import and create the engine host. If that fails, all work fails with the reason."""
    try:
        from runners.engine_host.host import EngineHost  # noqa: PLC0415  # torch takes seconds, and is optional

        engine_host = EngineHost(config)
    except ImportError as error:
        reason = f"this runner can't use models ({error}); install the extra: pip install 'dream-forge[diffusers]'"
    except ProviderError as error:
        reason = str(error)
    else:
        return Ready(versions=engine_host.versions, device=engine_host.device_name), engine_host.render

    def fail(_work: Work, _listener: ProgressReporter) -> None:
        raise ProviderError(reason)

    return Ready(versions={}, device="none"), fail


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="engine process: %(levelname)s %(name)s %(message)s")
    serve(int(sys.argv[1]), create_engine)
