"""The operations on the service itself: its name, health, projections and documents. Pure."""

from api.openapi.vocabulary import (
    HTML_MEDIA_TYPE,
    INVALID_QUERY_ERROR,
    STRING_SCHEMA,
    TEXT_MEDIA_TYPE,
    UNAVAILABLE_ERROR,
    Header,
    Operation,
    Reply,
    component_ref,
    enum_schema,
    json_replies,
    query_parameter,
)

_OPERATIONS_TAG = "operations"

GET_SERVICE = Operation(
    "getService", _OPERATIONS_TAG, "The service's name", replies=json_replies("The service's name.", "Service")
)
LIST_PROJECTIONS = Operation(
    "listProjections",
    _OPERATIONS_TAG,
    "The checkpoints of all projections",
    replies=json_replies("Each projection in each partition, and its lag.", "ProjectionList"),
    errors=UNAVAILABLE_ERROR,
)
GET_HEALTH = Operation(
    "getHealth", _OPERATIONS_TAG, "Does the process answer?", replies=json_replies("It does.", "Liveness")
)
GET_READINESS = Operation(
    "getReadiness",
    _OPERATIONS_TAG,
    "Is everything available that the process needs?",
    description="An API whose commits would fail is still ready, for reads; `checks.writes` reports it.",
    parameters=[query_parameter("need", "503 also where commits would fail.", enum_schema("writes"))],
    replies=[
        *json_replies("Everything is available.", "Readiness"),
        Reply(503, "`checks` names what is down.", component_ref("Readiness")),
    ],
    errors=INVALID_QUERY_ERROR,
)
GET_METRICS = Operation(
    "getMetrics",
    _OPERATIONS_TAG,
    "Metrics for Prometheus",
    replies=[
        Reply(
            200,
            "The text exposition format, or OpenMetrics for clients that accept it.",
            STRING_SCHEMA,
            media=TEXT_MEDIA_TYPE,
        )
    ],
)
GET_HOME = Operation(
    "getHome",
    _OPERATIONS_TAG,
    "The page to open in a browser",
    replies=[Reply(307, "To `/docs`.", headers={"Location": Header("`/docs`.")})],
)
GET_OPENAPI = Operation(
    "getOpenapi", _OPERATIONS_TAG, "This document", replies=[Reply(200, "OpenAPI 3.1.", {"type": "object"})]
)
GET_DOCS = Operation(
    "getDocs",
    _OPERATIONS_TAG,
    "This document as a page to read",
    replies=[Reply(200, "A page.", STRING_SCHEMA, media=HTML_MEDIA_TYPE)],
)
