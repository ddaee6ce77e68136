"""The engine process, which runs models. If it dies or hangs, only its current work is lost.

run ─▶ start a process, unless one runs ─▶ send the work ─▶ messages, until Done
└─ no message for stall_s, or the process ends ─▶ kill it, raise `EngineProcessDied`; the next run starts a new one
"""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

import msgspec
import structlog
from msgspec.structs import replace

from runners.engines.protocol import (
    LENGTH_BYTES,
    Cancel,
    Done,
    FromProcess,
    Ready,
    ToProcess,
    Work,
    encode_frames,
    pixels_size,
)

_READ_BUFFER_BYTES = 16 * 2**20
_DRAIN_CHUNK_BYTES = 2**18
_PIXELS_CHUNK_BYTES = 2**20
_START_TIMEOUT_S = 180.0
"""For the imports. The process opens models later."""

_STOP_TIMEOUT_S = 2.0
_log = structlog.get_logger(__name__)


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The first message to an engine process.

    device, dtype: as torch names them; None: the best one. batch_max: most images rendered at once.
    model_bytes: most bytes of open models beside the one in use.
    """

    device: str | None = None
    dtype: str | None = None
    batch_max: int = 8
    model_bytes: int | None = None


class EngineProcessDied(Exception):
    """The engine process died, or hung and was killed, while it worked."""


class EngineProcess:
    """An engine process, started when it is first needed. stall_s: longest time without a message while it works.

    program: the module that it runs. environ: its environment; None: this process's.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        stall_s: float,
        program: str = "runners.engine_host.server",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._program = program
        self._environ = environ
        self._stall_s = stall_s
        self._running: _RunningProcess | None = None
        self._work_count = 0
        self._cancelled_items: set[int] = set()
        self._decoder: msgspec.msgpack.Decoder[FromProcess] = msgspec.msgpack.Decoder(FromProcess)

    @property
    def pid(self) -> int | None:
        """The id of the running process; None if none runs."""
        return None if self._running is None or self._running.reader.at_eof() else self._running.process.pid

    async def run(self, work: Work, on_message: Callable[[FromProcess], None]) -> None:
        """Do some work, one at a time; `on_message` gets every message about it. Raises `EngineProcessDied`.

        Cancelling this coroutine ends the process.
        """
        self._cancelled_items = set()
        try:
            if self.pid is None:
                await self._terminate()  # clean up after a process that died while idle
            running = self._running or await self._start()
            self._work_count += 1
            await self._send_message(running, work)
            if self._cancelled_items:  # cancelled before the process had the work
                self.cancel(())
            while not isinstance(message := await self._read_message(running, self._stall_s), Done):
                on_message(message)
            if message.restart_needed:
                await self._terminate(_STOP_TIMEOUT_S)
        except TimeoutError:
            await self._terminate()
            raise EngineProcessDied(
                f"it said nothing for {self._stall_s if self._work_count else _START_TIMEOUT_S:g} s"
            ) from None
        except OSError as error:
            code = await self._terminate(_STOP_TIMEOUT_S)
            raise EngineProcessDied(f"{error}" if code is None else _exit_reason(code)) from error
        except (EOFError, msgspec.DecodeError) as error:
            code = await self._terminate(_STOP_TIMEOUT_S)
            raise EngineProcessDied(_exit_reason(code)) from error
        except BaseException:
            await self._terminate()
            raise

    def cancel(self, items: Iterable[int]) -> None:
        """Tell the process to skip some items of the current work."""
        self._cancelled_items.update(items)
        if self._running is not None and not self._running.writer.is_closing():
            message = Cancel(work=self._work_count, items=sorted(self._cancelled_items))
            self._running.writer.writelines(encode_frames(message))

    async def stop(self) -> None:
        """End the process if one runs. A second call does nothing."""
        await self._terminate(_STOP_TIMEOUT_S)

    async def _start(self) -> "_RunningProcess":
        parent_socket, child_socket = socket.socketpair()
        with child_socket:
            # -P: import no modules from the current folder, which others may be able to write.
            command = [sys.executable, "-P", "-m", self._program, str(child_socket.fileno())]
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, pass_fds=[child_socket.fileno()], env=self._environ
            )
        loop = asyncio.get_running_loop()
        reader = _DrainingReader(parent_socket.dup(), limit=_READ_BUFFER_BYTES, loop=loop)
        transport, protocol = await loop.create_connection(
            lambda: asyncio.StreamReaderProtocol(reader), sock=parent_socket
        )
        self._running = running = _RunningProcess(
            process, reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        )
        self._work_count = 0
        await self._send_message(running, self._config)
        ready = await self._read_message(running, _START_TIMEOUT_S)
        if isinstance(ready, Ready):
            _log.info("engine process started", pid=process.pid, device=ready.device, **ready.versions)
        return running

    async def _send_message(self, running: "_RunningProcess", message: ToProcess | EngineConfig) -> None:
        for frame in encode_frames(message):
            running.writer.write(frame)
        async with asyncio.timeout(self._stall_s):
            await running.writer.drain()

    async def _read_message(self, running: "_RunningProcess", timeout_s: float) -> FromProcess:
        async with asyncio.timeout(timeout_s):
            size = int.from_bytes(await running.reader.readexactly(LENGTH_BYTES), "big")
            message = self._decoder.decode(await running.reader.readexactly(size))
            left = pixels_size(message)
            return replace(message, pixels=await self._read_pixels(running, left)) if left else message

    async def _read_pixels(self, running: "_RunningProcess", left: int) -> bytes:
        """Read pixels in chunks: one copy of all would hold the event loop."""
        chunks = []
        while left:
            chunks.append(await running.reader.readexactly(min(left, _PIXELS_CHUNK_BYTES)))
            left -= len(chunks[-1])
        # Joining bytes releases the GIL.
        return chunks[0] if len(chunks) == 1 else await asyncio.to_thread(b"".join, chunks)

    async def _terminate(self, timeout_s: float = 0.0) -> int | None:
        """Kill the process unless it ends by itself within `timeout_s`. Returns its exit code; None if none runs."""
        running, self._running = self._running, None
        if running is None:
            return None
        running.writer.close()
        running.reader.close()
        try:
            with suppress(TimeoutError):  # closing the socket makes the process end
                await asyncio.wait_for(running.process.wait(), timeout_s)
        finally:
            if running.process.returncode is None:
                with suppress(ProcessLookupError):
                    # `Process.kill` polls, and can thereby take the exit status from the event loop's watcher.
                    os.kill(running.process.pid, signal.SIGKILL)
        return await running.process.wait()


class _DrainingReader(asyncio.StreamReader):
    """Reads everything that a process sent before it died.

    asyncio drops unread data when a write fails. duplicate: of the socket, which asyncio does not close.
    """

    def __init__(self, duplicate: socket.socket, *, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self._duplicate = duplicate

    def set_exception(self, exc: Exception) -> None:
        """Read the remaining data after the connection is lost."""
        del exc
        with suppress(OSError):
            while data := self._duplicate.recv(_DRAIN_CHUNK_BYTES, socket.MSG_DONTWAIT):
                self.feed_data(data)
        self.feed_eof()

    def close(self) -> None:
        """Close the duplicate. A second call does nothing."""
        self._duplicate.close()


class _RunningProcess(NamedTuple):
    """A process, and the reader and writer of its socket."""

    process: Process
    reader: _DrainingReader
    writer: asyncio.StreamWriter


def _exit_reason(code: int | None) -> str:
    """Describe how a process ended."""
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"
