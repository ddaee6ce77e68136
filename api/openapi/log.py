"""The operations on the whole log. Pure."""

from api.openapi.vocabulary import (
    CATEGORY_PARAMETER,
    CODES_PARAMETER,
    INVALID_QUERY_ERROR,
    LAST_EVENT_ID_PARAMETERS,
    STREAM_ERRORS_NOTE,
    STRING_SCHEMA,
    UNAVAILABLE_ERROR,
    Operation,
    enum_schema,
    integer_schema,
    json_replies,
    query_parameter,
    stream_reply,
)

LIST_EVENTS = Operation(
    "listEvents",
    "log",
    "The whole log, page by page",
    description="From its beginning, or after a cursor. Order holds within a stream.",
    parameters=[
        query_parameter(
            "cursor", "`next_cursor` of the previous page, or the `id:` of a streamed event.", STRING_SCHEMA
        ),
        query_parameter("limit", "Events a page.", integer_schema(1, 1000, 100)),
        CODES_PARAMETER,
        CATEGORY_PARAMETER,
    ],
    replies=json_replies("A page. With a filter it may be short or empty although more follows.", "LogPage"),
    errors=INVALID_QUERY_ERROR | UNAVAILABLE_ERROR,
)
STREAM_EVENTS = Operation(
    "streamEvents",
    "streams",
    "The whole log as it grows",
    description="By default from its end. One message an event, with no `event:` name; the data is a `LogEvent`, `id:`"
    " a cursor. `event: cursor` with `data: {}` is a heartbeat, and moves the cursor past events that a filter leaves"
    " out." + STREAM_ERRORS_NOTE,
    parameters=[
        *LAST_EVENT_ID_PARAMETERS,
        query_parameter("cursor", "Begin after this cursor.", STRING_SCHEMA),
        query_parameter("from", "Where to begin without a cursor.", enum_schema("start", "now") | {"default": "now"}),
        CODES_PARAMETER,
        CATEGORY_PARAMETER,
    ],
    replies=[stream_reply({})],
    errors=INVALID_QUERY_ERROR,
)
LIST_ANCHORS = Operation(
    "listAnchors",
    "log",
    "The log's anchors, the newest first",
    description="The same for every tenant. Each is a file for `dreamforge audit verify --anchor`.",
    parameters=[query_parameter("limit", "The maximum number.", integer_schema(1, 200, 50))],
    replies=json_replies("The anchors.", "AnchorList"),
    errors=INVALID_QUERY_ERROR | UNAVAILABLE_ERROR,
)
