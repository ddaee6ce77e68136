"""Clients of a disturbed service: they repeat requests without a response, and follow every job to its end."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import httpx

from eventstore.ids import new_id
from tests.kit import TERMINAL

_WAIT_S = 20
_BODY = {
    "type": "generate",
    "prompt": "a castle",
    "width": 32,
    "height": 32,
    "steps": 2,
    "chain": {"upscale": {"scale": 2}},
}


class Clients:
    """Several clients. Each submits a job, waits for its end, and submits the next.

    apis: where the service can be reached now. acknowledged: the jobs that the service has answered for. keys: how many
    Idempotency-Keys were sent. surprises: answers that no client should ever get.
    """

    def __init__(self, apis: Callable[[], Sequence[str]], clients: int) -> None:
        self._apis = apis
        self._clients = clients
        self.acknowledged: set[UUID] = set()
        self.keys = 0
        self.ended = 0
        self.surprises: Counter[str] = Counter()
        self.all_submitted = asyncio.Event()

    def __str__(self) -> str:
        """The progress of the clients, as text."""
        return f"{len(self.acknowledged)} jobs acknowledged, {self.ended} ended; surprises: {dict(self.surprises)}"

    @property
    def heartbeat(self) -> tuple[int, int]:
        """A value that changes as long as jobs make progress."""
        return len(self.acknowledged), self.ended

    async def run(self, jobs: int) -> None:
        """Submit this many jobs, and return when all have ended."""
        numbers = iter(range(jobs))
        target = len(self.acknowledged) + jobs
        self.all_submitted.clear()
        async with httpx.AsyncClient(timeout=_WAIT_S + 10, trust_env=False) as http, asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._client(http, numbers, target))

    async def _client(self, http: httpx.AsyncClient, numbers: Iterator[int], target: int) -> None:
        for number in numbers:
            job = await self._submit(http, number)
            self.acknowledged.add(job)
            if len(self.acknowledged) == target:
                self.all_submitted.set()
            await self._follow(http, job)
            self.ended += 1

    async def _submit(self, http: httpx.AsyncClient, number: int) -> UUID:
        """Submit a job of one or two images. Three of four have an idempotency key, so that they can be repeated."""
        headers = {}
        if number % 4:
            headers["Idempotency-Key"] = str(new_id())
            self.keys += 1
        body = _BODY | {"count": 1 if number % 5 == 0 else 2}
        answer = await self._insist(http, "POST", "/v1/jobs", headers, body)
        return UUID(answer["job"]["id"])

    async def _follow(self, http: httpx.AsyncClient, job: UUID) -> None:
        status = "queued"
        while status not in TERMINAL:
            answer = await self._insist(http, "GET", f"/v1/jobs/{job}", {"Prefer": f"wait={_WAIT_S}"})
            status = answer["status"]

    async def _insist(
        self, http: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], body: Any = None
    ) -> Any:
        """The response of any server, repeated until there is one."""
        while True:
            try:
                base = random.choice(self._apis() or [""])
                answer = await http.request(method, base + path, headers=headers, json=body)
            except (httpx.TransportError, httpx.UnsupportedProtocol):
                pass
            else:
                if answer.status_code in {200, 202}:
                    return answer.json()
                if answer.status_code != 503:
                    self.surprises[f"{method} {answer.status_code} {answer.text[:200]}"] += 1
            await asyncio.sleep(random.uniform(0.05, 0.3))
