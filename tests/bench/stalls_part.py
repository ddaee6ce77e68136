"""Part 6: how long the event loop is held while large images pass through, and what that does to heartbeats."""

import asyncio
import time
from collections import defaultdict
from itertools import pairwise
from typing import Any

import asyncpg
import msgspec

from orchestrator.step_kinds import STEP_KINDS
from tests.bench import ours
from tests.bench.http_client import Connection, request_bytes
from tests.bench.jobs import Say
from tests.bench.results import StallsLine
from tests.bench.stack import Stack, python, running
from tests.bench.work import PROMPT

RENDERERS = ("threads", "engine")
_SIDE, _SCALE = 4000, 2
_LIMIT_S = 1800.0
_ENDED_SQL = """
select count(*) filter (where status = 'succeeded') as succeeded, count(*) filter (where status = 'failed') as failed
from readmodel.jobs
"""
_LEASES_SQL = " union all ".join(
    f"select '{queue}', msg_id, read_ct, vt from pgmq.q_{queue} where read_ct > 0" for queue in STEP_KINDS
)
"""Each heartbeat moves a claimed message's `vt` by as much as the database's clock has moved since the last one."""


class StallsPart:
    """Measures part 6. jobs: with each renderer, all at once."""

    def __init__(self, stack: Stack, jobs: int, say: Say) -> None:
        self._stack = stack
        self._jobs = jobs
        self._say = say

    def run(self) -> list[StallsLine]:
        """Measure every renderer."""
        return [self._measure(renderer) for renderer in RENDERERS]

    def _measure(self, renderer: str) -> StallsLine:
        self._say(f"{self._jobs} jobs of incompressible {_SIDE}² images, rendered in {renderer}")
        name, home = f"stalls_{renderer}", self._stack.home
        log = home / f"{name}.log"
        with self._stack.database(name) as db_url:
            environ = ours.service_environ(db_url, self._stack.s3) | {"DF_HOME": str(home / name)}
            if renderer == "engine":
                environ |= {"DF_FAKE_RUNNER": "0", "DF_MODEL": "noise"}
            with running(python("tests.bench.noise", renderer), environ, log):
                return asyncio.run(self._run_jobs(renderer, ours.listening_url(log), db_url))

    async def _run_jobs(self, renderer: str, base: str, db_url: str) -> StallsLine:
        database = await asyncpg.connect(db_url)
        began = time.monotonic()
        async with Connection(base) as http:
            for number in range(self._jobs):
                status, answer = await http.send(request_bytes("POST", "/v1/jobs", _creation_body(number + 1)))
                if status != 202:
                    raise RuntimeError(f"POST /v1/jobs answered {status}: {answer.decode()}")
        gaps = await _heartbeat_gaps(database, self._jobs)
        seconds = time.monotonic() - began
        await database.close()
        async with Connection(base) as http:  # the server closes a connection that is idle for long
            metrics = (await http.send(request_bytes("GET", "/metrics")))[1].decode()
        return StallsLine(renderer, self._jobs, seconds, _longest_stall(metrics), gaps)


def _creation_body(seed: int) -> bytes:
    body = {"type": "generate", "prompt": PROMPT, "width": _SIDE, "height": _SIDE, "seed": seed}
    return msgspec.json.encode(body | {"chain": {"upscale": {"scale": _SCALE}}})


async def _heartbeat_gaps(database: asyncpg.Connection, jobs: int) -> list[float]:
    """The seconds between heartbeats, by the database's clock, until all jobs have succeeded."""
    deadline = time.monotonic() + _LIMIT_S
    leases: defaultdict[tuple[Any, ...], set[float]] = defaultdict(set)
    while True:
        for queue, message, token, until in await database.fetch(_LEASES_SQL):
            leases[queue, message, token].add(until.timestamp())
        ended = await database.fetchrow(_ENDED_SQL)
        if ended["failed"] or time.monotonic() > deadline:
            raise RuntimeError(f"of {jobs} jobs: {dict(ended)}")
        if ended["succeeded"] == jobs:
            return [later - before for seen in leases.values() for before, later in pairwise(sorted(seen))]
        await asyncio.sleep(0.5)


def _longest_stall(metrics: str) -> float:
    name = "df_event_loop_longest_stall_seconds "
    return next(float(line.removeprefix(name)) for line in metrics.splitlines() if line.startswith(name))
