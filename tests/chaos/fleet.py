"""Several processes of the service. A process that ends is replaced, as a supervisor does."""

import asyncio
import contextlib
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.kit import Service, eventually

_LOOK_S = 0.1
_START_S = 120.0
_LOUD = {"warning", "error", "critical"}


class Member:
    """One member of the fleet and its current process. log: of all its processes."""

    def __init__(self, role: str, environ: Mapping[str, str], log: Path) -> None:
        self.role = role
        self.log = log
        self._environ = environ
        self.service = Service(role, environ)

    @property
    def url(self) -> str | None:
        """The URL of the process; None while it starts or after its end."""
        return self.service.announced if self.runs() else None

    def runs(self) -> bool:
        """Whether it runs."""
        return self.service.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal, unless it has ended."""
        if self.runs():
            self.service.process.send_signal(number)

    def replace(self) -> int:
        """Replace a process that has ended. Returns its exit status."""
        status = self.end()
        self.service = Service(self.role, self._environ)
        return status

    def end(self) -> int:
        """End the process, and save its log. Returns its exit status."""
        self.service.kill()
        with self.log.open("a", encoding="utf-8") as file:
            file.writelines(self.service.lines)
        return self.service.process.wait()


class Fleet:
    """The processes of one service. shape: how many of each role. logs: a folder, with a file for each of them.

    broken: those that ended though nobody killed them, and how.
    """

    def __init__(self, environ: Mapping[str, str], shape: Mapping[str, int], logs: Path) -> None:
        logs.mkdir(parents=True)
        self.logs = logs
        self.broken: list[str] = []
        self._stopping = False
        self.members = [
            Member(role, environ, logs / f"{role}-{n}.log") for role, count in shape.items() for n in range(count)
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start all processes, and replace those that end, during the block. Not to be entered twice."""
        supervising = asyncio.create_task(self._supervise())
        try:
            await eventually(self._whole, within=_START_S, what="the start of every process")
            yield
        finally:
            self._stopping = True
            await supervising
            for member in self.members:
                member.signal(signal.SIGKILL)
            for member in self.members:
                await asyncio.to_thread(member.end)

    async def _whole(self) -> bool:
        return len(self.serving()) == len(self.members)

    async def _supervise(self) -> None:
        while not self._stopping:
            for member in self.members:
                if not member.runs():
                    status = await asyncio.to_thread(member.replace)
                    if status != -signal.SIGKILL:
                        self.broken.append(f"{member.role} ended with status {status}, see {member.log}")
            await asyncio.sleep(_LOOK_S)

    def serving(self, *roles: str) -> list[Member]:
        """The running members of these roles, or of all."""
        return [one for one in self.members if one.url is not None and (not roles or one.role in roles)]

    def apis(self) -> list[str]:
        """The URLs of the running API processes."""
        return [one.url for one in self.serving("api") if one.url is not None]

    def complaints(self) -> Counter[str]:
        """The number of each warning and error in the logs. Call it after the processes have ended."""
        found: Counter[str] = Counter()
        for log in self.logs.iterdir():
            for line in log.read_text("utf-8").splitlines():
                try:
                    said = json.loads(line)
                except json.JSONDecodeError:  # a line cut off by a kill, or a traceback of a process that starts
                    continue
                if said.get("level") in _LOUD:
                    found[said["event"]] += 1
        return found
