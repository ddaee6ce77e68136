"""The errors of the event store.

EventStoreError
├── DatabaseUnavailable    try again: the connection or the server is away
├── SchemaMissing          the database has no schema, or one of another release
├── UnknownEvent           a code or schema version this release does not know
├── UndecodableEvent       an event whose text is not what its code and schema version promise
├── EventRejected          a subscription's handler can't take an event
└── LogDamaged             the log contradicts itself: a gap, a missing event
"""

from eventstore.events import RecordedEvent


class EventStoreError(Exception):
    """Something went wrong in the event store."""


class DatabaseUnavailable(EventStoreError):
    """PostgreSQL can't be reached, or ended the connection; the statement may or may not have taken effect."""


class DatabaseAccessDenied(EventStoreError):
    """PostgreSQL denies access; the connection's settings are wrong."""


class SchemaMissing(EventStoreError):
    """The database does not hold this release's schema; run `dreamforge schema install`."""


class UnknownEvent(EventStoreError):
    """An event's code or schema version is not known to this release; a newer one wrote it."""

    def __init__(self, code: str, schema_version: int, partition: int, position: int) -> None:
        super().__init__(
            f"partition {partition}, position {position}: this release does not know {code!r} "
            f"in schema version {schema_version}; run the release that wrote it, or a later one"
        )


class UndecodableEvent(EventStoreError):
    """An event's text is not what its code and schema version promise."""

    def __init__(self, code: str, schema_version: int, version: int, problem: str) -> None:
        super().__init__(f"event {version}, {code!r} in schema version {schema_version}, can't be decoded: {problem}")
        self.version = version


class EventRejected(EventStoreError):
    """A subscription's handler can't take an event, and says so again however often it is asked.

    reason: why, without personal text; the whole story is the cause.
    """

    def __init__(self, event: RecordedEvent, cause: Exception) -> None:
        # The text of an unexpected error may hold anything, private text too.
        self.reason = str(cause) if isinstance(cause, EventStoreError) else type(cause).__name__
        super().__init__(f"stream {event.stream_id}, version {event.version} ({event.code}): {self.reason}")
        self.event = event


class LogDamaged(EventStoreError):
    """Events that were there are gone, or the order is broken."""
