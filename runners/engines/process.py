"""The engine process: where models live. It may die or hang, and costs nobody but what it had in hand.

work ─▶ start, unless one runs ─▶ send ─▶ messages, until Done
└─ silence or its end ─▶ kill, raise `EngineGone`; the next work starts anew
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

from runners.engines.protocol import Cancel, Done, FromProcess, Ready, ToProcess, Work

_HEAD = 4
_BUFFER = 16 * 2**20
_CHUNK = 2**18
_START_S = 180.0
"""For the imports alone; opening a model comes later."""

_STOP_S = 2.0
_log = structlog.get_logger(__name__)


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process is told when it starts.

    device, dtype: as torch names them; None: the best there is. batch_max: images rendered at once, at most.
    model_bytes: of models kept open, at most; the one in use always is.
    """

    device: str | None = None
    dtype: str | None = None
    batch_max: int = 8
    model_bytes: int | None = None


class EngineGone(Exception):
    """The engine process died, or hung and was killed, with work in hand."""


def framed(message: msgspec.Struct) -> bytes:
    """A message as it goes over the socket."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(_HEAD, "big") + body


class EngineProcess:
    """One process at a time, started when it is first needed. stall_s: how long it may be silent while it works.

    program: the module that it runs. environ: its environment; None: ours.
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
        self._running: _Running | None = None
        self._works = 0
        self._unwanted: set[int] = set()
        self._decoder: msgspec.msgpack.Decoder[FromProcess] = msgspec.msgpack.Decoder(FromProcess)

    @property
    def pid(self) -> int | None:
        """Of the process that runs now, if one does."""
        return None if self._running is None or self._running.reader.at_eof() else self._running.process.pid

    async def work(self, work: Work, told: Callable[[FromProcess], None]) -> None:
        """Have some work done, one at a time; `told` gets all that is said of it. Raises `EngineGone`.

        Who stops waiting for it ends the process.
        """
        self._unwanted = set()
        try:
            if self.pid is None:
                await self._end()  # of one that died while nobody needed it
            running = self._running or await self._start()
            self._works += 1
            await self._send(running, work)
            if self._unwanted:  # since before the process could hear of it
                self.cancel(())
            while not isinstance(message := await self._next(running, self._stall_s), Done):
                told(message)
            if message.unfit:
                await self._end(_STOP_S)
        except TimeoutError:
            await self._end()
            raise EngineGone(f"it said nothing for {self._stall_s if self._works else _START_S:g} s") from None
        except OSError as error:
            code = await self._end(_STOP_S)
            raise EngineGone(f"{error}" if code is None else _ended(code)) from error
        except (EOFError, msgspec.DecodeError) as error:
            code = await self._end(_STOP_S)
            raise EngineGone(_ended(code)) from error
        except BaseException:
            await self._end()
            raise

    def cancel(self, items: Iterable[int]) -> None:
        """Say that some items of the work under way are wanted no longer."""
        self._unwanted.update(items)
        if self._running is not None and not self._running.writer.is_closing():
            self._running.writer.write(framed(Cancel(work=self._works, items=sorted(self._unwanted))))

    async def stop(self) -> None:
        """End the process, if one runs. A second call does nothing."""
        await self._end(_STOP_S)

    async def _start(self) -> "_Running":
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: no modules of the current folder, which anybody may have put there.
            command = [sys.executable, "-P", "-m", self._program, str(theirs.fileno())]
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, pass_fds=[theirs.fileno()], env=self._environ
            )
        loop = asyncio.get_running_loop()
        reader = _Reader(ours.dup(), limit=_BUFFER, loop=loop)
        transport, protocol = await loop.create_connection(lambda: asyncio.StreamReaderProtocol(reader), sock=ours)
        self._running = running = _Running(process, reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        self._works = 0
        await self._send(running, self._config)
        ready = await self._next(running, _START_S)
        if isinstance(ready, Ready):
            _log.info("engine process started", pid=process.pid, device=ready.device, **ready.versions)
        return running

    async def _send(self, running: "_Running", message: ToProcess | EngineConfig) -> None:
        running.writer.write(framed(message))
        async with asyncio.timeout(self._stall_s):
            await running.writer.drain()

    async def _next(self, running: "_Running", patience_s: float) -> FromProcess:
        async with asyncio.timeout(patience_s):
            size = int.from_bytes(await running.reader.readexactly(_HEAD), "big")
            return self._decoder.decode(await running.reader.readexactly(size))

    async def _end(self, patience_s: float = 0.0) -> int | None:
        """Kill the process, if there is one that does not end by itself; answers how it ended."""
        running, self._running = self._running, None
        if running is None:
            return None
        running.writer.close()
        running.reader.close()
        try:
            with suppress(TimeoutError):  # a process that has closed its socket is about to end by itself
                await asyncio.wait_for(running.process.wait(), patience_s)
        finally:
            if running.process.returncode is None:
                with suppress(ProcessLookupError):
                    # `Process.kill` polls, and may so take the exit status away from the loop's own watcher.
                    os.kill(running.process.pid, signal.SIGKILL)
        return await running.process.wait()


class _Reader(asyncio.StreamReader):
    """Reads all that a process had sent before it died, however its end is noticed.

    asyncio drops what is still unread when a write fails. spare: a duplicate of the socket, which it does not close.
    """

    def __init__(self, spare: socket.socket, *, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self._spare = spare

    def set_exception(self, exc: Exception) -> None:
        """The connection is lost: read what is left, to its end."""
        del exc
        with suppress(OSError):
            while data := self._spare.recv(_CHUNK, socket.MSG_DONTWAIT):
                self.feed_data(data)
        self.feed_eof()

    def close(self) -> None:
        """Give the duplicate back. A second call does nothing."""
        self._spare.close()


class _Running(NamedTuple):
    """A process, and the two directions of its socket."""

    process: Process
    reader: _Reader
    writer: asyncio.StreamWriter


def _ended(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"
