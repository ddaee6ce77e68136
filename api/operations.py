"""What the OpenAPI document says of each route, in the order of `app.ROUTES`. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from api.examples import CHAINED_JOB, JOB_ANSWER, LEGACY_JOB, LOG_LINE, PIPELINE_JOB, SSE_TRANSCRIPT, Example
from orchestrator import codec
from orchestrator.events.base import Category
from orchestrator.events.keys import Scope
from orchestrator.events.steps import Status
from orchestrator.step_kinds import STEP_KINDS

ANY: tuple[Scope, ...] = get_args(Scope)
READS: tuple[Scope, ...] = ("jobs", "audit")
WRITES: tuple[Scope, ...] = ("jobs",)
AUDITS: tuple[Scope, ...] = ("audit",)
OPERATES: tuple[Scope, ...] = ("admin",)

Schema = dict[str, Any]
Location = Literal["path", "query", "header"]

JSON, NDJSON, SSE, TEXT, HTML = (
    "application/json",
    "application/x-ndjson",
    "text/event-stream",
    "text/plain",
    "text/html",
)


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of the path, the query or the headers."""

    name: str
    location: Location
    description: str
    schema: Schema


class Header(msgspec.Struct, frozen=True):
    """A header of an answer."""

    description: str
    schema: Schema = msgspec.field(default_factory=lambda: {"type": "string"})


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is no error.

    schema: None where there is no body. links: operations that go on from here, with the parameters they are given.
    """

    status: int
    description: str
    schema: Schema | None = None
    media: str = JSON
    headers: Mapping[str, Header] = {}
    examples: Mapping[str, Example] = {}
    links: Mapping[str, Mapping[str, str]] = {}


class RequestBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request."""

    schema: Schema
    required: bool = True
    examples: Mapping[str, Example] = {}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A method of a path.

    errors: why each code of `api.errors.STATUS` may come back; those that all operations with keys share are added.
    scopes: any of which a key must have; none where no key is asked for.
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    tag: str
    summary: str
    description: str = ""
    parameters: Sequence[Parameter] = ()
    body: RequestBody | None = None
    replies: Sequence[Reply]
    errors: Mapping[str, str] = {}
    scopes: Sequence[Scope] = ()


DESCRIPTION = """\
An event-sourced service for image jobs. `HEAD` works on every `GET` but the streams; `OPTIONS` answers 204 with
`Allow`; unknown query parameters are ignored. A body may be declared as any `application/*+json`. Every answer carries
`X-Request-Id`. JSON and NDJSON of a kilobyte and more are gzipped on request, streams never."""

TAGS = {
    "jobs": "Submit jobs, and see what became of them.",
    "streams": "Server-sent events: live, resumable, never missing one.",
    "log": "The whole log, for those who tail it, and its anchors.",
    "models": "What jobs may be run with. Models are registered by the command line.",
    "operations": "For those who run the service.",
}


def ref(name: str) -> Schema:
    """A schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def _query(name: str, description: str, schema: Schema) -> Parameter:
    return Parameter(name, "query", description, schema)


def _header(name: str, description: str, schema: Schema | None = None) -> Parameter:
    return Parameter(name, "header", description, schema or {"type": "string"})


def _whole(least: int, most: int, default: int | None = None) -> Schema:
    bounds: Schema = {"type": "integer", "minimum": least, "maximum": most}
    return bounds if default is None else bounds | {"default": default}


_UUID: Schema = {"type": "string", "format": "uuid"}
_TIME: Schema = {"type": "string", "format": "date-time", "examples": ["2026-01-02T12:00:00Z"]}
_VERSION = _whole(0, 2**31 - 1)
_JOB_ID = Parameter("job_id", "path", "The job's id. One that is no UUID names no job: 404.", _UUID)
_ARTIFACT_ID = Parameter("artifact_id", "path", "The artifact's id.", _UUID)
_MODEL_ID = Parameter("model_id", "path", "The model's id.", _UUID)
_CURSOR: Schema = {"type": "string"}
_PREFER = _header(
    "Prefer",
    "`wait=N` (RFC 7240): answer when the job has ended, or N seconds later, 60 at most. Malformed ones are ignored.",
)
_TRACEPARENT = _header(
    "traceparent", "W3C Trace Context; goes with the job to its runners, and is kept until it is erased."
)
REQUEST_IDS = (
    _header("X-Client-Request-Id", "An id for this request, 1 to 128 printable ASCII characters; wins over the next."),
    _header("X-Request-Id", "The same. Without either the service draws one."),
)
_LAST_EVENT_ID = _header("Last-Event-ID", "The `id:` that was received last; the stream goes on after it.")
_CODES = _query(
    "codes",
    "Only events of these codes.",
    {"type": "array", "items": {"enum": sorted(codec.CODES)}, "minItems": 1},
)
_CATEGORY = _query("category", "Only events of this category.", {"enum": list(get_args(Category))})

REQUEST_ID = {"X-Request-Id": Header("The request's id.", {"type": "string", "minLength": 1, "maxLength": 128})}
RETRY_AFTER = {"Retry-After": Header("In how many seconds to try again.", {"type": "string", "pattern": "^[0-9]+$"})}
CHALLENGE = {"WWW-Authenticate": Header("`Bearer`, with `error` where a key or a token was given (RFC 6750).")}
SECURITY: Schema = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, where the service asks for one; `dreamforge keys create` makes it.",
    },
    "stream_token": {
        "type": "apiKey",
        "in": "query",
        "name": "access_token",
        "description": "A token of `createStreamToken`, for a browser's EventSource.",
    },
}
# A string to those who read the body as a whole, and an object for each message to those who know the format.
_MESSAGES: Schema = {
    "type": ["string", "object"],
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": JSON},
        "id": {"type": "string"},
    },
}
_ETAG = {"ETag": Header('`"v{version}"` of the job.', {"type": "string", "pattern": '^"v[0-9]+"$'})}
_LOCATION = {"Location": Header("The job's path.", {"type": "string", "format": "uri-reference"})}
_APPLIED = {"Preference-Applied": Header("The preference that was honoured, like `wait=10`.")}
_NO_STORE = {"Cache-Control": Header("`no-store`.", {"const": "no-store"})}

_LOST = "No such job, or an id that is no UUID."
_AWAY = "The database can't be reached; see `Retry-After`."
_WRONG_QUERY = "A parameter is malformed or out of bounds; `details.field` names it."

STRANGER = "No API key, or one that is unknown or was revoked."
MISDIRECTED = "The service does not answer for this `Host` (`DF_ALLOWED_HOSTS`)."
LIMITED = "More requests a second, or more open jobs, than this tenant may have; see `Retry-After`."

_READ = {"not_found": _LOST, "infra_unavailable": _AWAY}
_READ_QUERY = _READ | {"invalid_input": _WRONG_QUERY}

_EMPTY = RequestBody(schema={"type": ["object", "null"], "maxProperties": 0}, required=False)
_NO_BODY = {
    "payload_too_large": "The body is over `DF_MAX_BODY_BYTES`.",
    "unsupported_media_type": "The body is declared as something else than JSON, or as encoded.",
    "invalid_input": "There is a body, and it is not empty.",
}

_JOB_LINKS = {
    name: {"job_id": "$response.body#/job/id"}
    for name in ("getJob", "listArtifacts", "getProgress", "getHistory", "getLogs", "cancelJob", "retryJob")
}
_ARTIFACT_LINKS = {
    "getArtifactContent": {"job_id": "$request.path.job_id", "artifact_id": "$response.body#/artifacts/0/id"}
}


def _one_job(path: str, name: str, summary: str, **more: Any) -> Operation:
    """A read of one job."""
    given = {"tag": "jobs", "errors": _READ, "method": "GET", "scopes": READS} | more
    given["parameters"] = [_JOB_ID, *given.get("parameters", [])]
    return Operation(path=f"/v1/jobs/{{job_id}}{path}", name=name, summary=summary, **given)


def _answered(description: str, name: str, **more: Any) -> list[Reply]:
    return [Reply(status=200, description=description, schema=ref(name), **more)]


def _stream_reply(description: str, examples: Mapping[str, Example] | None = None) -> Reply:
    headers = _NO_STORE | {"X-Accel-Buffering": Header("`no`.", {"const": "no"})}
    return Reply(
        status=200, description=description, schema=_MESSAGES, media=SSE, headers=headers, examples=examples or {}
    )


def _change(action: str, summary: str, description: str, refused: str) -> Operation:
    """A change of one job, by a request without a body."""
    headers = _LOCATION | _ETAG
    accepted = [Reply(status=202, description="The request is in the log.", schema=ref("JobAnswer"), headers=headers)]
    if action == "cancel":
        already = Reply(status=200, description="It was cancelled before.", schema=ref("JobAnswer"), headers=headers)
        accepted.insert(0, already)
    return Operation(
        method="POST",
        path=f"/v1/jobs/{{job_id}}/{action}",
        name=f"{action}Job",
        tag="jobs",
        summary=summary,
        description=description,
        scopes=WRITES,
        parameters=[_JOB_ID, _TRACEPARENT],
        body=_EMPTY,
        replies=accepted,
        errors=_READ | _NO_BODY | {"conflict": refused},
    )


_SHED = (
    " Where other routes answer 429, 503 or 500, this one answers 200 with a `retry:` of its own and closes, since any"
    " other status makes an EventSource give up."
)

OPERATIONS: list[Operation] = [
    Operation(
        method="GET",
        path="/v1/",
        name="getService",
        tag="operations",
        summary="Who answers",
        scopes=ANY,
        replies=_answered("The service's name.", "Service"),
    ),
    Operation(
        method="GET",
        path="/v1/jobs",
        name="listJobs",
        tag="jobs",
        summary="The jobs, the newest first",
        scopes=READS,
        description="Stable while jobs come in: a page goes on where the one before ended. May trail by a moment.",
        parameters=[
            _query("status", "Only jobs of this status.", {"enum": list(get_args(Status))}),
            _query("limit", "Jobs a page; clamped to 1-200.", {"type": "integer", "default": 20}),
            _query("cursor", "`next_cursor` of the page before.", _CURSOR),
        ],
        replies=_answered("A page.", "JobList", links={"getJob": {"job_id": "$response.body#/jobs/0/id"}}),
        errors={"invalid_input": _WRONG_QUERY, "infra_unavailable": _AWAY},
    ),
    Operation(
        method="POST",
        path="/v1/jobs",
        name="createJob",
        tag="jobs",
        summary="Submit a job",
        scopes=WRITES,
        description="When this answers, the job, its steps and the duty to run the first are durable.",
        parameters=[
            _header(
                "Idempotency-Key",
                "The same key with the same body answers the same job, with another body 409; kept as long as the job.",
                {"type": "string", "minLength": 1, "maxLength": 255},
            ),
            _PREFER,
            _TRACEPARENT,
        ],
        body=RequestBody(
            schema={"anyOf": [ref("JobRequest"), ref("PipelineRequest")]},
            examples={"legacy": LEGACY_JOB, "chained": CHAINED_JOB, "pipeline": PIPELINE_JOB},
        ),
        replies=[
            Reply(
                status=status,
                description=description,
                schema=ref("JobAnswer"),
                headers=_LOCATION
                | _ETAG
                | _APPLIED
                | {"Idempotency-Replayed": Header("`true` where the key was known.", {"const": "true"})},
                examples={"job": JOB_ANSWER},
                links=_JOB_LINKS,
            )
            for status, description in (
                (200, "The job has ended already (`Prefer: wait`, `DF_EAGER`), or `DF_CREATE_STATUS` is 200."),
                (202, "The job is accepted."),
            )
        ],
        errors={
            "conflict": "The Idempotency-Key came with another body before.",
            "payload_too_large": "The body is over `DF_MAX_BODY_BYTES`.",
            "unsupported_media_type": "The body is declared as something else than JSON, or as encoded.",
            "invalid_input": "Something in the body or a header is wrong; `details.field` names it.",
            "infra_unavailable": "The database can't be reached, or `DF_MAX_QUEUED_JOBS` is; see `Retry-After`.",
        },
    ),
    _one_job(
        "",
        "getJob",
        "One job and its steps",
        description="Never stale: it shows every event that any answer has reported.",
        parameters=[
            _query("as_of", "The job as it was at this time; not beside as_of_version.", _TIME),
            _query("as_of_version", "The job as it was after this version of its history.", _VERSION),
            _PREFER,
            _header("If-None-Match", "The ETag of the answer that is known already."),
        ],
        replies=[
            *_answered("The job.", "Job", headers=_ETAG | _APPLIED),
            Reply(status=304, description="It is still at that version.", headers=_ETAG),
        ],
        errors=_READ_QUERY,
    ),
    _one_job(
        "/artifacts",
        "listArtifacts",
        "The images of a job",
        parameters=[_query("step", "Only those of this step.", {"enum": list(STEP_KINDS)})],
        replies=_answered("The images so far, by step, then index.", "ArtifactList", links=_ARTIFACT_LINKS),
        errors=_READ_QUERY,
    ),
    _one_job(
        "/artifacts/{artifact_id}/content",
        "getArtifactContent",
        "The bytes of an image",
        description="Where a client sends its `Authorization` along with a redirect, it asks with `redirect=0`.",
        parameters=[_ARTIFACT_ID, _query("redirect", "0: the URL as JSON.", {"enum": ["0", "1"], "default": "1"})],
        replies=[
            *_answered("The URL, with `redirect=0`.", "ArtifactPlace", headers=_NO_STORE),
            Reply(
                status=302,
                description="To a presigned URL, made for this answer; for HEAD to one that is made for HEAD.",
                headers={"Location": Header("The URL.", {"type": "string", "format": "uri"})} | _NO_STORE,
            ),
        ],
        errors=_READ_QUERY,
    ),
    _change(
        "cancel",
        "End a job early",
        "A queued step never starts, a running one stops at its next item. What is written stays; a job whose last"
        " image is written may still succeed. Repeating it changes nothing.",
        "The job has succeeded or failed.",
    ),
    _one_job(
        "/progress",
        "getProgress",
        "How far a job has come",
        parameters=[_query("include", "`per_step` adds each step's own progress.", {"type": "string"})],
        replies=_answered("The progress.", "Progress"),
    ),
    _one_job(
        "/progress/stream",
        "streamJob",
        "A job's events as they happen",
        tag="streams",
        description="The history from the beginning, or after `Last-Event-ID`, then every event as it comes, to the"
        " job's end: `event: log`, `artifact` and `error` with the version as `id:`; `event: progress` without one."
        + _SHED,
        parameters=[
            _LAST_EVENT_ID,
            _query("last_event_id", "The same, where headers can't be set.", {"type": "string"}),
            _query("since_ts", "Begin with the first event at or after this time.", _TIME),
            _query("access_token", "A token of `createStreamToken`, where headers can't be set.", {"type": "string"}),
            _query("include", "`step` sends step.start and step.finish as `event: step`.", {"type": "string"}),
        ],
        replies=[
            _stream_reply("The events.", {"transcript": SSE_TRANSCRIPT}),
            Reply(status=204, description="The job has ended, and the client has seen its last event."),
        ],
        errors={"not_found": _LOST, "invalid_input": _WRONG_QUERY},
    ),
    _one_job(
        "/events",
        "getHistory",
        "A job's whole history",
        parameters=[
            _query("after_version", "Begin after this version.", _VERSION | {"default": 0}),
            _query("limit", "Events a page.", _whole(1, 1000, 100)),
            _query(
                "include",
                "`proof` adds to each event what its hashes can be computed anew from, offline.",
                {"type": "array", "items": {"enum": ["proof"]}, "minItems": 1},
            ),
        ],
        replies=_answered("A page of the history.", "History"),
        errors=_READ_QUERY,
    ),
    _one_job(
        "/logs",
        "getLogs",
        "A job's history as log lines",
        parameters=[
            _query("tail", "Only the last lines; `DF_LOGS_TAIL_MAX` (2000) at most.", _whole(1, 2000)),
            _query("since_ts", "Begin with the first event at or after this time.", _TIME),
        ],
        replies=[
            Reply(
                status=200,
                description="A `LogLine` each line, the oldest first: the last 500 (`DF_LOGS_TAIL_DEFAULT`), or all"
                " since `since_ts`.",
                schema={"type": "string"},
                media=NDJSON,
                examples={"lines": LOG_LINE},
            )
        ],
        errors=_READ_QUERY,
    ),
    _change(
        "retry",
        "Run a failed job's failed step again",
        "What was written is kept, and attempt numbers go on.",
        "The job has not failed, or a retry is pending.",
    ),
    Operation(
        method="POST",
        path="/v1/jobs/{job_id}/stream_token",
        name="createStreamToken",
        tag="streams",
        summary="Let a page follow a job",
        description="A browser's EventSource can't send headers. This token opens one job's stream for ten minutes.",
        scopes=READS,
        parameters=[_JOB_ID],
        body=_EMPTY,
        replies=_answered("The token.", "StreamToken", headers=_NO_STORE),
        errors=_READ | _NO_BODY,
    ),
    Operation(
        method="GET",
        path="/v1/events",
        name="listEvents",
        tag="log",
        summary="The whole log, page by page",
        scopes=AUDITS,
        description="From its beginning, or after a cursor. Order holds within a stream.",
        parameters=[
            _query("cursor", "`next_cursor` of the page before, or the `id:` of a streamed event.", _CURSOR),
            _query("limit", "Events a page.", _whole(1, 1000, 100)),
            _CODES,
            _CATEGORY,
        ],
        replies=_answered("A page. A filter may leave it short, or empty, with more to come.", "LogPage"),
        errors={"invalid_input": _WRONG_QUERY, "infra_unavailable": _AWAY},
    ),
    Operation(
        method="GET",
        path="/v1/events/stream",
        name="streamEvents",
        tag="streams",
        summary="The whole log as it grows",
        scopes=AUDITS,
        description="From its end on, unless told otherwise. One message an event, with no `event:` name; the data is a"
        " `LogEvent`, `id:` a cursor. `event: cursor` with `data: {}` is a heartbeat, and moves the cursor past what a"
        " filter leaves out." + _SHED,
        parameters=[
            _LAST_EVENT_ID,
            _query("last_event_id", "The same, where headers can't be set.", {"type": "string"}),
            _query("cursor", "Begin after this cursor.", _CURSOR),
            _query("from", "Where to begin without a cursor.", {"enum": ["start", "now"], "default": "now"}),
            _CODES,
            _CATEGORY,
        ],
        replies=[_stream_reply("The events.")],
        errors={"invalid_input": _WRONG_QUERY},
    ),
    Operation(
        method="GET",
        path="/v1/anchors",
        name="listAnchors",
        tag="log",
        summary="The log's signed heads, the newest first",
        scopes=AUDITS,
        description="The same for every tenant. Each is a file for `dreamforge audit verify --anchor`.",
        parameters=[_query("limit", "At most so many.", _whole(1, 200, 50))],
        replies=_answered("The anchors.", "AnchorList"),
        errors={"invalid_input": _WRONG_QUERY, "infra_unavailable": _AWAY},
    ),
    Operation(
        method="GET",
        path="/v1/projections",
        name="listProjections",
        tag="operations",
        summary="How far each projection has come",
        scopes=OPERATES,
        replies=_answered("Each projection in each partition, and what waits for it.", "ProjectionList"),
        errors={"infra_unavailable": _AWAY},
    ),
    Operation(
        method="GET",
        path="/v1/models",
        name="listModels",
        tag="models",
        summary="What jobs may be run with",
        scopes=READS,
        parameters=[
            _query("enabled", "Those that are installed and enabled, or the others.", {"enum": ["true", "false"]}),
            _query("page", "Which page, from 1.", _whole(1, 2**31 - 1, 1)),
            _query("limit", "Models a page.", _whole(1, 200, 50)),
        ],
        replies=_answered(
            "The default generator first, upscalers last.",
            "ModelList",
            links={"getModel": {"model_id": "$response.body#/models/0/id"}},
        ),
        errors={"invalid_input": _WRONG_QUERY, "infra_unavailable": _AWAY},
    ),
    Operation(
        method="GET",
        path="/v1/models/{model_id}",
        name="getModel",
        tag="models",
        summary="One model",
        scopes=READS,
        parameters=[_MODEL_ID],
        replies=_answered("The model.", "ModelDetail"),
        errors={"not_found": "No such model, or an id that is no UUID.", "infra_unavailable": _AWAY},
    ),
    Operation(
        method="GET",
        path="/healthz",
        name="getHealth",
        tag="operations",
        summary="Does the process answer?",
        replies=_answered("It does.", "Liveness"),
    ),
    Operation(
        method="GET",
        path="/readyz",
        name="getReadiness",
        tag="operations",
        summary="Is all there that the process needs?",
        description="An API whose commits would fail is ready all the same, for reads; `checks.writes` tells.",
        parameters=[_query("need", "503 also where commits would fail.", {"enum": ["writes"]})],
        replies=[
            *_answered("All is there.", "Readiness"),
            Reply(status=503, description="`checks` names what is down.", schema=ref("Readiness")),
        ],
        errors={"invalid_input": _WRONG_QUERY},
    ),
    Operation(
        method="GET",
        path="/metrics",
        name="getMetrics",
        tag="operations",
        summary="Metrics for Prometheus",
        replies=[
            Reply(
                status=200,
                description="The text exposition format, or OpenMetrics for those who accept it.",
                schema={"type": "string"},
                media=TEXT,
            )
        ],
    ),
    Operation(
        method="GET",
        path="/",
        name="getHome",
        tag="operations",
        summary="The page to open in a browser",
        replies=[
            Reply(status=307, description="To `/docs`.", headers={"Location": Header("`/docs`.", {"type": "string"})})
        ],
    ),
    Operation(
        method="GET",
        path="/openapi.json",
        name="getOpenapi",
        tag="operations",
        summary="This document",
        replies=[Reply(status=200, description="OpenAPI 3.1.", schema={"type": "object"})],
    ),
    Operation(
        method="GET",
        path="/docs",
        name="getDocs",
        tag="operations",
        summary="This document as a page to read",
        replies=[Reply(status=200, description="A page.", schema={"type": "string"}, media=HTML)],
    ),
]
