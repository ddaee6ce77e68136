"""Dream Forge's database: the event store and, on top of it, `schema.sql`."""

from importlib import resources
from pathlib import Path

from eventstore import schema
from eventstore.database import Database


async def install(database: Database, *, partitions: int = 8) -> bool:
    """Install this release's schema, or migrate to it, as `eventstore.schema.install` does."""
    return await schema.install(database, load_application(), partitions=partitions)


def load_application() -> schema.ApplicationSchema:
    """Dream Forge's part of the database."""
    package = resources.files("dreamforge")
    # In a wheel schema.sql lies in the package; in a checkout at the top, where its readers look for it.
    packaged = package / "schema.sql"
    file = packaged if packaged.is_file() else Path(__file__).parent.parent / "schema.sql"
    migrations = {
        release: (package / "migrations" / f"{release:04}.sql").read_text(encoding="utf-8")
        for release in range(2, schema.RELEASE + 1)
    }
    return schema.ApplicationSchema(sql=file.read_text(encoding="utf-8"), migrations=migrations)
