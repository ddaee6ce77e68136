"""Events that this release cannot read, as a bug in this or another release could append them."""

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
"""The data of a valid job.created."""

UNKNOWN_VALUE = ("job.created", CREATED | {"generate": CREATED["generate"] | {"format": "avif"}})
"""An enum value of a later release, with this release's schema version."""
NO_SUCH_OUTCOME = ("job.finish", {"status": "abandoned"})
"""The same at a job's end."""


def unstorable(step_id: str) -> tuple[str, dict[str, Any]]:
    """An error event that decodes, with a message that no text column can store."""
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
    """Append one event with any content."""
    connection = await connect(db_url)
    try:
        assert await _append(connection, stream, expected, code, data, category, tenant) == "accepted"
    finally:
        await connection.close()


async def append_at_end(db_url: str, stream: UUID, code: str, data: object) -> None:
    """Append at the job's newest version, and retry after conflicts. A repeated call appends once."""
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
