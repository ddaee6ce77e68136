"""The errors of the event store.

EventStoreError
├── DatabaseUnavailable    try again: the connection or the server is away
├── SchemaMissing          the database has no schema, or one of another release
├── UnknownEvent           a code or schema version this release does not know
└── LogDamaged             the log contradicts itself: a gap, a missing event
"""


class EventStoreError(Exception):
    """Something went wrong in the event store."""


class DatabaseUnavailable(EventStoreError):
    """PostgreSQL can't be reached, or ended the connection; the statement may or may not have taken effect."""


class DatabaseRefused(EventStoreError):
    """PostgreSQL answers, but lets us not in; the connection's settings are wrong."""


class SchemaMissing(EventStoreError):
    """The database does not hold this release's schema; run `dreamforge schema install`."""


class UnknownEvent(EventStoreError):
    """An event's code or schema version is not known to this release; a newer one wrote it."""

    def __init__(self, code: str, schema_version: int, partition: int, position: int) -> None:
        super().__init__(
            f"partition {partition}, position {position}: this release does not know {code!r} "
            f"in schema version {schema_version}; run the release that wrote it, or a later one"
        )


class LogDamaged(EventStoreError):
    """Events that were there are gone, or the order is broken."""
