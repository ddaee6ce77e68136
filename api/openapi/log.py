"""The operations on the whole log. Pure."""

from api.openapi.vocabulary import (
    CATEGORY,
    CODES,
    INVALID_QUERY,
    LAST_EVENT_ID,
    STREAM_ERRORS,
    STRING,
    UNAVAILABLE,
    Operation,
    answered,
    enum,
    integer,
    query,
    streamed,
)

LIST_EVENTS = Operation(
    "listEvents",
    "log",
    "The whole log, page by page",
    description="From its beginning, or after a cursor. Order holds within a stream.",
    parameters=[
        query("cursor", "`next_cursor` of the previous page, or the `id:` of a streamed event.", STRING),
        query("limit", "Events a page.", integer(1, 1000, 100)),
        CODES,
        CATEGORY,
    ],
    replies=answered("A page. With a filter it may be short or empty although more follows.", "LogPage"),
    errors=INVALID_QUERY | UNAVAILABLE,
)
STREAM_EVENTS = Operation(
    "streamEvents",
    "streams",
    "The whole log as it grows",
    description="By default from its end. One message an event, with no `event:` name; the data is a `LogEvent`, `id:`"
    " a cursor. `event: cursor` with `data: {}` is a heartbeat, and moves the cursor past events that a filter leaves"
    " out." + STREAM_ERRORS,
    parameters=[
        *LAST_EVENT_ID,
        query("cursor", "Begin after this cursor.", STRING),
        query("from", "Where to begin without a cursor.", enum("start", "now") | {"default": "now"}),
        CODES,
        CATEGORY,
    ],
    replies=[streamed({})],
    errors=INVALID_QUERY,
)
LIST_ANCHORS = Operation(
    "listAnchors",
    "log",
    "The log's anchors, the newest first",
    description="The same for every tenant. Each is a file for `dreamforge audit verify --anchor`.",
    parameters=[query("limit", "The maximum number.", integer(1, 200, 50))],
    replies=answered("The anchors.", "AnchorList"),
    errors=INVALID_QUERY | UNAVAILABLE,
)
