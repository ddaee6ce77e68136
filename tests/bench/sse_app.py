"""The bare fan-out of part 4: one reader of a table, frames encoded once, one bounded queue for each subscriber."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import asyncpg
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from tests.bench.http_app import serve

CHANNEL = "bare_events"
TABLE = """
    create table bare_events (
        id bigserial primary key,
        job_id uuid not null,
        ts timestamptz not null default now(),
        data json not null
    )
"""
_QUEUE_SIZE = 100
_READ = "select id, job_id::text, ts, data from bare_events where id > $1 order by id limit 1000"


class FanOut:
    """Reads new rows when it is notified, and puts each one's frame into the queues of its job's subscribers."""

    def __init__(self) -> None:
        self.queues: dict[str, set[asyncio.Queue[bytes]]] = {}
        self._notified = asyncio.Event()

    async def run(self, db_url: str) -> None:
        """Read until cancelled."""
        connection = await asyncpg.connect(db_url)
        await connection.add_listener(CHANNEL, lambda *_: self._notified.set())
        last = 0
        while True:
            rows = await connection.fetch(_READ, last)
            for row in rows:
                last = row["id"]
                self._publish(row)
            if not rows:
                await self._notified.wait()
                self._notified.clear()

    def _publish(self, row: asyncpg.Record) -> None:
        queues = self.queues.get(row["job_id"])
        if not queues:
            return
        line = {
            "ts": row["ts"],
            "level": "info",
            **msgspec.json.decode(row["data"]),
            "payload": msgspec.Raw(row["data"].encode()),
        }
        frame = b"event: log\ndata: %s\nid: %d\n\n" % (msgspec.json.encode(line), row["id"])
        for queue in queues:
            with contextlib.suppress(asyncio.QueueFull):  # a subscriber that does not read misses frames
                queue.put_nowait(frame)


async def _stream(request: Request) -> StreamingResponse:
    fan_out: FanOut = request.app.state.fan_out
    return StreamingResponse(_frames(fan_out, request.path_params["job_id"]), media_type="text/event-stream")


async def _frames(fan_out: FanOut, job_id: str) -> AsyncIterator[bytes]:
    queue: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE_SIZE)
    fan_out.queues.setdefault(job_id, set()).add(queue)
    try:
        yield b"retry: 2000\n\n"
        while True:
            frame = await queue.get()
            yield frame
    finally:
        fan_out.queues[job_id].discard(queue)


def make_app(db_url: str) -> Starlette:
    """The application."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.fan_out = FanOut()
        reading = asyncio.create_task(app.state.fan_out.run(db_url))
        yield
        reading.cancel()

    return Starlette(routes=[Route("/v1/jobs/{job_id}/progress/stream", _stream)], lifespan=lifespan)


if __name__ == "__main__":
    serve(make_app(sys.argv[1]), int(sys.argv[2]))
