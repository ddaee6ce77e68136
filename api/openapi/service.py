"""The operations on the service itself: its name, health, projections and documents. Pure."""

from api.openapi.common import INVALID_QUERY, UNAVAILABLE
from api.openapi.vocabulary import HTML, TEXT, Header, Operation, Reply, answered, enum, query, ref

_TAG = "operations"

GET_SERVICE = Operation(
    name="getService", tag=_TAG, summary="The service's name", replies=answered("The service's name.", "Service")
)
LIST_PROJECTIONS = Operation(
    name="listProjections",
    tag=_TAG,
    summary="The checkpoints of all projections",
    replies=answered("Each projection in each partition, and its lag.", "ProjectionList"),
    errors=UNAVAILABLE,
)
GET_HEALTH = Operation(
    name="getHealth", tag=_TAG, summary="Does the process answer?", replies=answered("It does.", "Liveness")
)
GET_READINESS = Operation(
    name="getReadiness",
    tag=_TAG,
    summary="Is everything available that the process needs?",
    description="An API whose commits would fail is still ready, for reads; `checks.writes` reports it.",
    parameters=[query("need", "503 also where commits would fail.", enum("writes"))],
    replies=[
        *answered("Everything is available.", "Readiness"),
        Reply(status=503, description="`checks` names what is down.", schema=ref("Readiness")),
    ],
    errors=INVALID_QUERY,
)
GET_METRICS = Operation(
    name="getMetrics",
    tag=_TAG,
    summary="Metrics for Prometheus",
    replies=[
        Reply(
            status=200,
            description="The text exposition format, or OpenMetrics for clients that accept it.",
            schema={"type": "string"},
            media=TEXT,
        )
    ],
)
GET_HOME = Operation(
    name="getHome",
    tag=_TAG,
    summary="The page to open in a browser",
    replies=[
        Reply(status=307, description="To `/docs`.", headers={"Location": Header("`/docs`.", {"type": "string"})})
    ],
)
GET_OPENAPI = Operation(
    name="getOpenapi",
    tag=_TAG,
    summary="This document",
    replies=[Reply(status=200, description="OpenAPI 3.1.", schema={"type": "object"})],
)
GET_DOCS = Operation(
    name="getDocs",
    tag=_TAG,
    summary="This document as a page to read",
    replies=[Reply(status=200, description="A page.", schema={"type": "string"}, media=HTML)],
)
