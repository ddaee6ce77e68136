"""The operations on jobs. Pure."""

from typing import Any, get_args

from api.examples import CHAINED_JOB, JOB_ANSWER, LEGACY_JOB, LOG_LINE, PIPELINE_JOB, SSE_TRANSCRIPT
from api.openapi.vocabulary import (
    INVALID_QUERY,
    LAST_EVENT_ID,
    NDJSON,
    NO_STORE,
    STREAM_ERRORS,
    STRING,
    TIME,
    UNAVAILABLE,
    UUID,
    Header,
    Operation,
    Parameter,
    Reply,
    RequestBody,
    answered,
    enum,
    header,
    integer,
    query,
    ref,
    streamed,
)
from orchestrator.events import Status
from orchestrator.step_kinds import STEP_KINDS

_VERSION = integer(0, 2**31 - 1)
_JOB_ID = Parameter("job_id", "path", "The job's id. An id that is not a UUID names no job: 404.", UUID)
_ARTIFACT_ID = Parameter("artifact_id", "path", "The artifact's id.", UUID)
_PREFER = header(
    "Prefer",
    "`wait=N` (RFC 7240): answer when the job has ended, or after N seconds, 60 at most. Malformed values are ignored.",
)
_TRACEPARENT = header("traceparent", "W3C Trace Context; passed to the job's runners, and kept until it is erased.")

_ETAG = {"ETag": Header('`"v{version}"` of the job.', {"type": "string", "pattern": '^"v[0-9]+"$'})}
_LOCATION = {"Location": Header("The job's path.", {"type": "string", "format": "uri-reference"})}
_APPLIED = {"Preference-Applied": Header("The preference that was honoured, like `wait=10`.")}

_NOT_FOUND = {"not_found": "No such job, or an id that is no UUID."}
_READ = _NOT_FOUND | UNAVAILABLE
_READ_QUERY = _READ | INVALID_QUERY
_BODY = {
    "payload_too_large": "The body is over `DF_MAX_BODY_BYTES`.",
    "unsupported_media_type": "The body is declared as something else than JSON, or as encoded.",
}
_EMPTY = RequestBody({"type": ["object", "null"], "maxProperties": 0}, required=False)
_EMPTY_ERRORS = _BODY | {"invalid_input": "There is a body, and it is not empty."}

_JOB_LINKS = {
    name: {"job_id": "$response.body#/job/id"}
    for name in ("getJob", "listArtifacts", "getProgress", "getHistory", "getLogs", "cancelJob", "retryJob")
}


def _read(name: str, summary: str, **more: Any) -> Operation:
    """A read of one job."""
    fields = {"tag": "jobs", "errors": _READ_QUERY} | more
    fields["parameters"] = [_JOB_ID, *more.get("parameters", [])]
    return Operation(name, summary=summary, **fields)


def _accepted(status: int, description: str) -> Reply:
    return Reply(status, description, ref("JobAnswer"), headers=_LOCATION | _ETAG)


def _changed(name: str, summary: str, description: str, conflict: str, *others: Reply) -> Operation:
    """A change of one job, by a request without a body."""
    return _read(
        name,
        summary,
        description=description,
        parameters=[_TRACEPARENT],
        body=_EMPTY,
        replies=[*others, _accepted(202, "The request is in the log.")],
        errors=_READ | _EMPTY_ERRORS | {"conflict": conflict},
    )


LIST_JOBS = Operation(
    "listJobs",
    "jobs",
    "The jobs, the newest first",
    description="Pages stay consistent while jobs are added. The list may be behind by a moment.",
    parameters=[
        query("status", "Only jobs of this status.", enum(*get_args(Status))),
        query("limit", "Jobs a page; clamped to 1-200.", {"type": "integer", "default": 20}),
        query("cursor", "`next_cursor` of the previous page.", STRING),
    ],
    replies=answered("A page.", "JobList", links={"getJob": {"job_id": "$response.body#/jobs/0/id"}}),
    errors=INVALID_QUERY | UNAVAILABLE,
)
CREATE_JOB = Operation(
    "createJob",
    "jobs",
    "Submit a job",
    description="When this answers, the job, its steps and the duty to run the first are durable.",
    parameters=[
        header(
            "Idempotency-Key",
            "The same key with the same body answers the same job, with another body 409; kept as long as the job.",
            {"type": "string", "minLength": 1, "maxLength": 255},
        ),
        _PREFER,
        _TRACEPARENT,
    ],
    body=RequestBody(
        {"anyOf": [ref("JobRequest"), ref("PipelineRequest")]},
        examples={"legacy": LEGACY_JOB, "chained": CHAINED_JOB, "pipeline": PIPELINE_JOB},
    ),
    replies=[
        Reply(
            status,
            description,
            ref("JobAnswer"),
            headers=_LOCATION
            | _ETAG
            | _APPLIED
            | {"Idempotency-Replayed": Header("`true` where the key was known.", {"const": "true"})},
            examples={"job": JOB_ANSWER},
            links=_JOB_LINKS,
        )
        for status, description in (
            (200, "The job has already ended (`Prefer: wait`, `DF_EAGER`), or `DF_CREATE_STATUS` is 200."),
            (202, "The job is accepted."),
        )
    ],
    errors=_BODY
    | {
        "conflict": "The Idempotency-Key came with another body before.",
        "invalid_input": "Something in the body or a header is wrong; `details.field` names it.",
        "infra_unavailable": "The database can't be reached, or `DF_MAX_QUEUED_JOBS` is; see `Retry-After`.",
    },
)
GET_JOB = _read(
    "getJob",
    "One job and its steps",
    description="Never stale: it includes every event that any response has reported.",
    parameters=[
        query("as_of", "The job as it was at this time; not together with as_of_version.", TIME),
        query("as_of_version", "The job as it was after this version of its history.", _VERSION),
        _PREFER,
        header("If-None-Match", "The ETag of the response that the client has."),
    ],
    replies=[
        *answered("The job.", "Job", headers=_ETAG | _APPLIED),
        Reply(304, "It is still at that version.", headers=_ETAG),
    ],
)
LIST_ARTIFACTS = _read(
    "listArtifacts",
    "The images of a job",
    parameters=[query("step", "Only those of this step.", enum(*STEP_KINDS))],
    replies=answered(
        "The images so far, by step, then index.",
        "ArtifactList",
        links={
            "getArtifactContent": {"job_id": "$request.path.job_id", "artifact_id": "$response.body#/artifacts/0/id"}
        },
    ),
)
GET_ARTIFACT_CONTENT = _read(
    "getArtifactContent",
    "The bytes of an image",
    description="A client that sends its `Authorization` along with redirects uses `redirect=0`.",
    parameters=[_ARTIFACT_ID, query("redirect", "0: the URL as JSON.", enum("0", "1") | {"default": "1"})],
    replies=[
        *answered("The URL, with `redirect=0`.", "ArtifactPlace", headers=NO_STORE),
        Reply(
            302,
            "To a presigned URL, made for this response; for HEAD to one that is made for HEAD.",
            headers={"Location": Header("The URL.", {"type": "string", "format": "uri"})} | NO_STORE,
        ),
    ],
)
CANCEL_JOB = _changed(
    "cancelJob",
    "End a job early",
    "A queued step never starts; a running step stops at its next item. What is written stays; a job whose last"
    " image is written may still succeed. Repeating it changes nothing.",
    "The job has succeeded or failed.",
    _accepted(200, "It was cancelled before."),
)
GET_PROGRESS = _read(
    "getProgress",
    "A job's progress",
    parameters=[query("include", "`per_step` adds each step's own progress.", STRING)],
    replies=answered("The progress.", "Progress"),
    errors=_READ,
)
STREAM_JOB = _read(
    "streamJob",
    "A job's events as they happen",
    tag="streams",
    description="The history from the beginning, or after `Last-Event-ID`, then every event as it comes, to the"
    " job's end: `event: log`, `artifact` and `error` with the version as `id:`; `event: progress` without one."
    + STREAM_ERRORS,
    parameters=[
        *LAST_EVENT_ID,
        query("since_ts", "Begin with the first event at or after this time.", TIME),
        query("access_token", "A token of `createStreamToken`, for clients that can't set headers.", STRING),
        query("include", "`step` sends step.start and step.finish as `event: step`.", STRING),
    ],
    replies=[
        streamed({"transcript": SSE_TRANSCRIPT}),
        Reply(204, "The job has ended, and the client has received its last event."),
    ],
    errors=_NOT_FOUND | INVALID_QUERY,
)
GET_HISTORY = _read(
    "getHistory",
    "A job's whole history",
    parameters=[
        query("after_version", "Begin after this version.", _VERSION | {"default": 0}),
        query("limit", "Events a page.", integer(1, 1000, 100)),
        query(
            "include",
            "`proof` adds to each event what is needed to recompute its hashes offline.",
            {"type": "array", "items": enum("proof"), "minItems": 1},
        ),
    ],
    replies=answered("A page of the history.", "History"),
)
GET_LOGS = _read(
    "getLogs",
    "A job's history as log lines",
    parameters=[
        query("tail", "Only the last lines; `DF_LOGS_TAIL_MAX` (2000) at most.", integer(1, 2000)),
        query("since_ts", "Begin with the first event at or after this time.", TIME),
    ],
    replies=[
        Reply(
            200,
            "A `LogLine` each line, the oldest first: the last 500 (`DF_LOGS_TAIL_DEFAULT`), or all since `since_ts`.",
            STRING,
            media=NDJSON,
            examples={"lines": LOG_LINE},
        )
    ],
)
RETRY_JOB = _changed(
    "retryJob",
    "Run a failed job's failed step again",
    "What was written is kept, and attempt numbers continue.",
    "The job has not failed, or a retry is pending.",
)
CREATE_STREAM_TOKEN = _read(
    "createStreamToken",
    "Let a page follow a job",
    tag="streams",
    description="A browser's EventSource can't send headers. This token opens one job's stream for ten minutes.",
    body=_EMPTY,
    replies=answered("The token.", "StreamToken", headers=NO_STORE),
    errors=_READ | _EMPTY_ERRORS,
)
