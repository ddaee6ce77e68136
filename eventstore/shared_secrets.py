"""Secrets that all processes of a service share."""

from eventstore.database import Database


async def shared_secret(database: Database, name: str) -> bytes:
    """The secret with this name. Raises `DatabaseUnavailable`."""
    rows = await database.read("select secret from eventstore.secrets where name = $1", name)
    return bytes(rows[0]["secret"])
