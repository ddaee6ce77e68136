"""The operations on the service itself: its name, health, projections and documents. Pure."""

from api.openapi.vocabulary import (
    HTML,
    INVALID_QUERY,
    STRING,
    TEXT,
    UNAVAILABLE,
    Header,
    Operation,
    Reply,
    answered,
    enum,
    query,
    ref,
)

_TAG = "operations"

GET_SERVICE = Operation("getService", _TAG, "The service's name", replies=answered("The service's name.", "Service"))
LIST_PROJECTIONS = Operation(
    "listProjections",
    _TAG,
    "The checkpoints of all projections",
    replies=answered("Each projection in each partition, and its lag.", "ProjectionList"),
    errors=UNAVAILABLE,
)
GET_HEALTH = Operation("getHealth", _TAG, "Does the process answer?", replies=answered("It does.", "Liveness"))
GET_READINESS = Operation(
    "getReadiness",
    _TAG,
    "Is everything available that the process needs?",
    description="An API whose commits would fail is still ready, for reads; `checks.writes` reports it.",
    parameters=[query("need", "503 also where commits would fail.", enum("writes"))],
    replies=[
        *answered("Everything is available.", "Readiness"),
        Reply(503, "`checks` names what is down.", ref("Readiness")),
    ],
    errors=INVALID_QUERY,
)
GET_METRICS = Operation(
    "getMetrics",
    _TAG,
    "Metrics for Prometheus",
    replies=[
        Reply(
            200,
            "The text exposition format, or OpenMetrics for clients that accept it.",
            STRING,
            media=TEXT,
        )
    ],
)
GET_HOME = Operation(
    "getHome",
    _TAG,
    "The page to open in a browser",
    replies=[Reply(307, "To `/docs`.", headers={"Location": Header("`/docs`.")})],
)
GET_OPENAPI = Operation(
    "getOpenapi",
    _TAG,
    "This document",
    replies=[Reply(200, "OpenAPI 3.1.", {"type": "object"})],
)
GET_DOCS = Operation(
    "getDocs",
    _TAG,
    "This document as a page to read",
    replies=[Reply(200, "A page.", STRING, media=HTML)],
)
