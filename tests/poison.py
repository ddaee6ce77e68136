"""Events that this release can't read, as a bug in another release, or in this one, would leave them in the log."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from eventstore.ids import new_id
from tests.kit import connect, generate_params

CREATED: dict[str, Any] = {
    "type": "generate",
    "steps": [{"step_id": "018f0000-0000-7000-8000-00000000000a", "name": "generate"}],
    "generate": msgspec.to_builtins(generate_params()),
    "upscale": None,
}
"""The data of a sound job.created."""

UNKNOWN_VALUE = ("job.created", CREATED | {"generate": CREATED["generate"] | {"format": "avif"}})
"""An enum's value of a later release, under the schema version of this one."""
NO_SUCH_OUTCOME = ("job.finish", {"status": "abandoned"})
"""The same at a job's end."""


def unstorable(step_id: str) -> tuple[str, dict[str, Any]]:
    """An error that decodes, with a message that no text column takes."""
    error = {"step_id": step_id, "step": "generate", "attempt": 1, "error_code": "oom", "error_message": "CUDA\0"}
    return "error", error | {"item_index": None}


def foreign_start() -> tuple[str, dict[str, Any]]:
    """A step.start that decodes, of a step that the job does not have."""
    return "step.start", {"step_id": str(new_id()), "step": "generate", "attempt": 1, "runner": "r"}


def without_runner(step_id: str) -> tuple[str, dict[str, Any]]:
    """A step.start that lacks a field."""
    return "step.start", {"step_id": step_id, "step": "generate", "attempt": 1}


async def append(
    db_url: str,
    stream: UUID,
    expected: int,
    code: str,
    data: object,
    *,
    category: str = "job",
    tenant: str = "default",
) -> None:
    """Append one event, whatever it holds."""
    connection = await connect(db_url)
    try:
        assert await _append(connection, stream, expected, code, data, category, tenant) == "accepted"
    finally:
        await connection.close()


async def append_at_end(db_url: str, stream: UUID, code: str, data: object) -> None:
    """The same at whatever version a job stands, however often others come first; once, if it is called again."""
    connection = await connect(db_url)
    newest = "select coalesce(max(version), 0) from eventstore.events where stream_id = $1"
    there = "select exists (select from eventstore.events where stream_id = $1 and code = $2 and data::text = $3)"
    text = msgspec.json.encode(data).decode()
    try:
        while not await connection.fetchval(there, stream, code, text):
            expected = await connection.fetchval(newest, stream)
            if await _append(connection, stream, expected, code, data, "job", "default") == "accepted":
                return
    finally:
        await connection.close()


async def _append(
    connection: asyncpg.Connection, stream: UUID, expected: int, code: str, data: object, category: str, tenant: str
) -> str:
    event = {
        "event_id": str(new_id()),
        "code": code,
        "schema_version": 1,
        "ts": datetime.now(UTC),
        "data": msgspec.json.encode(data).decode(),
        "meta": "{}",
        "private": None,
    }
    appended = {"stream": stream, "category": category, "tenant": tenant, "expected": expected, "events": [event]}
    text = msgspec.json.encode([appended]).decode()
    rows = await connection.fetch("select * from eventstore.commit($1::json)", text)
    return str(rows[0]["outcome"])
