"""The operations on jobs. Pure."""

from typing import Any, get_args

from api.examples import (
    CHAINED_JOB_EXAMPLE,
    JOB_ANSWER_EXAMPLE,
    LEGACY_JOB_EXAMPLE,
    LOG_LINES_EXAMPLE,
    PIPELINE_JOB_EXAMPLE,
    SSE_TRANSCRIPT_EXAMPLE,
)
from api.openapi.vocabulary import (
    INVALID_QUERY_ERROR,
    LAST_EVENT_ID_PARAMETERS,
    NDJSON_MEDIA_TYPE,
    NO_STORE_HEADER,
    STREAM_ERRORS_NOTE,
    STRING_SCHEMA,
    TIME_SCHEMA,
    UNAVAILABLE_ERROR,
    UUID_SCHEMA,
    Header,
    Operation,
    Parameter,
    Reply,
    RequestBody,
    component_ref,
    enum_schema,
    header_parameter,
    integer_schema,
    json_replies,
    query_parameter,
    stream_reply,
)
from orchestrator.events import Status
from orchestrator.step_kinds import STEP_KINDS

_VERSION_SCHEMA = integer_schema(0, 2**31 - 1)
_JOB_ID_PARAMETER = Parameter(
    "job_id", "path", "The job's id. An id that is not a UUID names no job: 404.", UUID_SCHEMA
)
_ARTIFACT_ID_PARAMETER = Parameter("artifact_id", "path", "The artifact's id.", UUID_SCHEMA)
_PREFER_PARAMETER = header_parameter(
    "Prefer",
    "`wait=N` (RFC 7240): answer when the job has ended, or after N seconds, 60 at most. Malformed values are ignored.",
)
_TRACEPARENT_PARAMETER = header_parameter(
    "traceparent", "W3C Trace Context; passed to the job's runners, and kept until it is erased."
)

_ETAG_HEADER = {"ETag": Header('`"v{version}"` of the job.', {"type": "string", "pattern": '^"v[0-9]+"$'})}
_LOCATION_HEADER = {"Location": Header("The job's path.", {"type": "string", "format": "uri-reference"})}
_PREFERENCE_APPLIED_HEADER = {"Preference-Applied": Header("The preference that was honoured, like `wait=10`.")}

_NOT_FOUND_ERROR = {"not_found": "No such job, or an id that is no UUID."}
_READ_ERRORS = _NOT_FOUND_ERROR | UNAVAILABLE_ERROR
_READ_QUERY_ERRORS = _READ_ERRORS | INVALID_QUERY_ERROR
_BODY_ERRORS = {
    "payload_too_large": "The body is over `DF_MAX_BODY_BYTES`.",
    "unsupported_media_type": "The body is declared as something else than JSON, or as encoded.",
}
_EMPTY_BODY = RequestBody({"type": ["object", "null"], "maxProperties": 0}, required=False)
_EMPTY_BODY_ERRORS = _BODY_ERRORS | {"invalid_input": "There is a body, and it is not empty."}

_JOB_LINKS = {
    name: {"job_id": "$response.body#/job/id"}
    for name in ("getJob", "listArtifacts", "getProgress", "getHistory", "getLogs", "cancelJob", "retryJob")
}


def _job_read_operation(operation_id: str, summary: str, **operation_fields: Any) -> Operation:
    """A read of one job."""
    fields = {"tag": "jobs", "errors": _READ_QUERY_ERRORS} | operation_fields
    fields["parameters"] = [_JOB_ID_PARAMETER, *operation_fields.get("parameters", [])]
    return Operation(operation_id, summary=summary, **fields)


def _job_answer_reply(status: int, description: str) -> Reply:
    return Reply(status, description, component_ref("JobAnswer"), headers=_LOCATION_HEADER | _ETAG_HEADER)


def _job_change_operation(
    operation_id: str, summary: str, description: str, conflict_description: str, *other_replies: Reply
) -> Operation:
    """A change of one job, by a request without a body."""
    return _job_read_operation(
        operation_id,
        summary,
        description=description,
        parameters=[_TRACEPARENT_PARAMETER],
        body=_EMPTY_BODY,
        replies=[*other_replies, _job_answer_reply(202, "The request is in the log.")],
        errors=_READ_ERRORS | _EMPTY_BODY_ERRORS | {"conflict": conflict_description},
    )


LIST_JOBS = Operation(
    "listJobs",
    "jobs",
    "The jobs, the newest first",
    description="Pages stay consistent while jobs are added. The list may be behind by a moment.",
    parameters=[
        query_parameter("status", "Only jobs of this status.", enum_schema(*get_args(Status))),
        query_parameter("limit", "Jobs a page; clamped to 1-200.", {"type": "integer", "default": 20}),
        query_parameter("cursor", "`next_cursor` of the previous page.", STRING_SCHEMA),
    ],
    replies=json_replies("A page.", "JobList", links={"getJob": {"job_id": "$response.body#/jobs/0/id"}}),
    errors=INVALID_QUERY_ERROR | UNAVAILABLE_ERROR,
)
CREATE_JOB = Operation(
    "createJob",
    "jobs",
    "Submit a job",
    description="When this answers, the job, its steps and the duty to run the first are durable.",
    parameters=[
        header_parameter(
            "Idempotency-Key",
            "The same key with the same body answers the same job, with another body 409; kept as long as the job.",
            {"type": "string", "minLength": 1, "maxLength": 255},
        ),
        _PREFER_PARAMETER,
        _TRACEPARENT_PARAMETER,
    ],
    body=RequestBody(
        {"anyOf": [component_ref("JobRequest"), component_ref("PipelineRequest")]},
        examples={"legacy": LEGACY_JOB_EXAMPLE, "chained": CHAINED_JOB_EXAMPLE, "pipeline": PIPELINE_JOB_EXAMPLE},
    ),
    replies=[
        Reply(
            status,
            description,
            component_ref("JobAnswer"),
            headers=_LOCATION_HEADER
            | _ETAG_HEADER
            | _PREFERENCE_APPLIED_HEADER
            | {"Idempotency-Replayed": Header("`true` where the key was known.", {"const": "true"})},
            examples={"job": JOB_ANSWER_EXAMPLE},
            links=_JOB_LINKS,
        )
        for status, description in (
            (200, "The job has already ended (`Prefer: wait`, `DF_EAGER`), or `DF_CREATE_STATUS` is 200."),
            (202, "The job is accepted."),
        )
    ],
    errors=_BODY_ERRORS
    | {
        "conflict": "The Idempotency-Key came with another body before.",
        "invalid_input": "Something in the body or a header is wrong; `details.field` names it.",
        "infra_unavailable": "The database can't be reached, or `DF_MAX_QUEUED_JOBS` is; see `Retry-After`.",
    },
)
GET_JOB = _job_read_operation(
    "getJob",
    "One job and its steps",
    description="Never stale: it includes every event that any response has reported.",
    parameters=[
        query_parameter("as_of", "The job as it was at this time; not together with as_of_version.", TIME_SCHEMA),
        query_parameter("as_of_version", "The job as it was after this version of its history.", _VERSION_SCHEMA),
        _PREFER_PARAMETER,
        header_parameter("If-None-Match", "The ETag of the response that the client has."),
    ],
    replies=[
        *json_replies("The job.", "Job", headers=_ETAG_HEADER | _PREFERENCE_APPLIED_HEADER),
        Reply(304, "It is still at that version.", headers=_ETAG_HEADER),
    ],
)
LIST_ARTIFACTS = _job_read_operation(
    "listArtifacts",
    "The images of a job",
    parameters=[query_parameter("step", "Only those of this step.", enum_schema(*STEP_KINDS))],
    replies=json_replies(
        "The images so far, by step, then index.",
        "ArtifactList",
        links={
            "getArtifactContent": {"job_id": "$request.path.job_id", "artifact_id": "$response.body#/artifacts/0/id"}
        },
    ),
)
GET_ARTIFACT_CONTENT = _job_read_operation(
    "getArtifactContent",
    "The bytes of an image",
    description="A client that sends its `Authorization` along with redirects uses `redirect=0`.",
    parameters=[
        _ARTIFACT_ID_PARAMETER,
        query_parameter("redirect", "0: the URL as JSON.", enum_schema("0", "1") | {"default": "1"}),
    ],
    replies=[
        *json_replies("The URL, with `redirect=0`.", "ArtifactPlace", headers=NO_STORE_HEADER),
        Reply(
            302,
            "To a presigned URL, made for this response; for HEAD to one that is made for HEAD.",
            headers={"Location": Header("The URL.", {"type": "string", "format": "uri"})} | NO_STORE_HEADER,
        ),
    ],
)
CANCEL_JOB = _job_change_operation(
    "cancelJob",
    "End a job early",
    "A queued step never starts; a running step stops at its next item. What is written stays; a job whose last"
    " image is written may still succeed. Repeating it changes nothing.",
    "The job has succeeded or failed.",
    _job_answer_reply(200, "It was cancelled before."),
)
GET_PROGRESS = _job_read_operation(
    "getProgress",
    "A job's progress",
    parameters=[query_parameter("include", "`per_step` adds each step's own progress.", STRING_SCHEMA)],
    replies=json_replies("The progress.", "Progress"),
    errors=_READ_ERRORS,
)
STREAM_JOB = _job_read_operation(
    "streamJob",
    "A job's events as they happen",
    tag="streams",
    description="The history from the beginning, or after `Last-Event-ID`, then every event as it comes, to the"
    " job's end: `event: log`, `artifact` and `error` with the version as `id:`; `event: progress` without one."
    + STREAM_ERRORS_NOTE,
    parameters=[
        *LAST_EVENT_ID_PARAMETERS,
        query_parameter("since_ts", "Begin with the first event at or after this time.", TIME_SCHEMA),
        query_parameter(
            "access_token", "A token of `createStreamToken`, for clients that can't set headers.", STRING_SCHEMA
        ),
        query_parameter("include", "`step` sends step.start and step.finish as `event: step`.", STRING_SCHEMA),
    ],
    replies=[
        stream_reply({"transcript": SSE_TRANSCRIPT_EXAMPLE}),
        Reply(204, "The job has ended, and the client has received its last event."),
    ],
    errors=_NOT_FOUND_ERROR | INVALID_QUERY_ERROR,
)
GET_HISTORY = _job_read_operation(
    "getHistory",
    "A job's whole history",
    parameters=[
        query_parameter("after_version", "Begin after this version.", _VERSION_SCHEMA | {"default": 0}),
        query_parameter("limit", "Events a page.", integer_schema(1, 1000, 100)),
        query_parameter(
            "include",
            "`proof` adds to each event what is needed to recompute its hashes offline.",
            {"type": "array", "items": enum_schema("proof"), "minItems": 1},
        ),
    ],
    replies=json_replies("A page of the history.", "History"),
)
GET_LOGS = _job_read_operation(
    "getLogs",
    "A job's history as log lines",
    parameters=[
        query_parameter("tail", "Only the last lines; `DF_LOGS_TAIL_MAX` (2000) at most.", integer_schema(1, 2000)),
        query_parameter("since_ts", "Begin with the first event at or after this time.", TIME_SCHEMA),
    ],
    replies=[
        Reply(
            200,
            "A `LogLine` each line, the oldest first: the last 500 (`DF_LOGS_TAIL_DEFAULT`), or all since `since_ts`.",
            STRING_SCHEMA,
            media=NDJSON_MEDIA_TYPE,
            examples={"lines": LOG_LINES_EXAMPLE},
        )
    ],
)
RETRY_JOB = _job_change_operation(
    "retryJob",
    "Run a failed job's failed step again",
    "What was written is kept, and attempt numbers continue.",
    "The job has not failed, or a retry is pending.",
)
CREATE_STREAM_TOKEN = _job_read_operation(
    "createStreamToken",
    "Let a page follow a job",
    tag="streams",
    description="A browser's EventSource can't send headers. This token opens one job's stream for ten minutes.",
    body=_EMPTY_BODY,
    replies=json_replies("The token.", "StreamToken", headers=NO_STORE_HEADER),
    errors=_READ_ERRORS | _EMPTY_BODY_ERRORS,
)
