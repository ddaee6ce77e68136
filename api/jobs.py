"""Routes that read jobs."""

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api import responses, schemas
from api.access import READ_SCOPES, caller_of
from api.cursors import JobsCursor
from api.errors import invalid_field_error, not_found_error
from api.event_lines import ndjson_line
from api.inputs import (
    bounded_integer_query,
    choice_query,
    clamped_integer_query,
    comma_separated_query,
    path_job_id,
    path_uuid,
    time_query,
)
from api.openapi import jobs as described
from api.responses import json_response
from api.routing import get
from api.services import Services
from api.waiting import preference_applied_header, preferred_wait_s, wait_until_terminal
from eventstore.events import RecordedEvent
from orchestrator.events import JobErased, Status
from orchestrator.step_kinds import STEP_KINDS
from projections.job_view import JobView, fold_history, history_as_of
from projections.progress import job_progress as progress_of

_MAX_HISTORY_PAGE_SIZE = 1000
_EVENTS_PER_READ = 500
_NDJSON_MEDIA_TYPE = "application/x-ndjson"
_MAX_JOB_VERSION = 2**31 - 1


async def list_jobs(request: Request, services: Services) -> Response:
    """GET /v1/jobs: the newest first, page by page."""
    limit = clamped_integer_query(request, "limit", default=20, minimum=1, maximum=200)
    status = choice_query(request, "status", get_args(Status))
    cursor = _jobs_cursor_query(request)
    found = await services.queries.list_jobs(
        caller_of(request).tenant,
        status=status,  # type: ignore[arg-type]  # `choice_query` has checked it
        older_than=None if cursor is None else (cursor.created_at, cursor.job_id),
        limit=limit + 1,
    )
    page, more = found[:limit], found[limit:]
    next_cursor = JobsCursor(page[-1].created_at, page[-1].job_id).encode() if more else None
    return json_response(responses.job_list_answer(page, next_cursor))


def _jobs_cursor_query(request: Request) -> JobsCursor | None:
    given = request.query_params.get("cursor")
    if given is None:
        return None
    try:
        return JobsCursor.decode(given)
    except ValueError:
        raise invalid_field_error("cursor", "is none of this list; take it from next_cursor as it stands") from None


async def get_job(request: Request, services: Services) -> Response:
    """GET /v1/jobs/{id}: as it is, as it was, or when it has ended."""
    past = await _past_view(request, services)
    if past is not None:
        return _job_response(request, *past, {})
    seen = await load_job_view(request, services)
    seconds = preferred_wait_s(request)
    if seconds is not None and not seen.terminal:
        seen = await wait_until_terminal(services, caller_of(request).tenant, seen.job_id, seconds) or seen
    return _job_response(request, seen, seen.version, preference_applied_header(seconds))


def _job_response(request: Request, view: JobView, etag_version: int, headers: dict[str, str]) -> Response:
    headers["ETag"] = responses.job_etag(etag_version)
    if {headers["ETag"], "*"} & _parse_etags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return json_response(responses.job_detail_answer(view), headers=headers)


async def _past_view(request: Request, services: Services) -> tuple[JobView, int] | None:
    """The job as it was, if the query asks for that, and the version that last changed this response.

    An erasure changes the response for all earlier versions.
    """
    version = request.query_params.get("as_of_version")
    at = time_query(request, "as_of")
    if version is None and at is None:
        return None
    if version is not None and at is not None:
        raise invalid_field_error("as_of", "can't stand beside as_of_version; give one of them")
    job = path_job_id(request)
    history = await services.log.read_stream(job)
    if not _is_job_of_caller(request, history):
        raise not_found_error(f"job {job}")
    beginning = _history_up_to_queried_version(request, history) if at is None else history_as_of(history, at)
    seen = fold_history(beginning, lenient=True)
    if seen is None:
        raise not_found_error(f"job {job} at that time")
    erased = [event.version for event in history if event.code == JobErased.code]
    return seen, max([seen.version, *erased])


def _history_up_to_queried_version(request: Request, history: Sequence[RecordedEvent]) -> Sequence[RecordedEvent]:
    version = bounded_integer_query(request, "as_of_version", default=0, minimum=0, maximum=_MAX_JOB_VERSION)
    if version > len(history):
        raise invalid_field_error("as_of_version", f"the job is at version {len(history)}", version=len(history))
    return history[:version]


async def list_artifacts(request: Request, services: Services) -> Response:
    """GET /v1/jobs/{id}/artifacts."""
    wanted = choice_query(request, "step", tuple(STEP_KINDS))
    seen = await load_job_view(request, services, artifacts=True)
    ids = {step.step_id for step in seen.steps if wanted in {None, step.name}}
    chosen = [one for one in seen.artifacts if one.step_id in ids]
    urls, expires_at = await _presign_urls(services, [one.s3_key for one in chosen])
    return json_response(responses.artifact_list_answer(seen, chosen, urls, expires_at))


async def get_artifact_content(request: Request, services: Services) -> Response:
    """GET /v1/jobs/{id}/artifacts/{artifact_id}/content: a redirect to the presigned URL, or the URL as JSON."""
    artifact_id = path_uuid(request, "artifact_id", "artifact")
    redirects = choice_query(request, "redirect", ("0", "1")) != "0"
    seen = await load_job_view(request, services, artifacts=True)
    key = next((one.s3_key for one in seen.artifacts if one.artifact_id == artifact_id), None)
    if key is None:
        raise not_found_error(f"artifact {artifact_id} of job {seen.job_id}")
    [url], expires_at = await _presign_urls(services, [key], for_head=redirects and request.method == "HEAD")
    if not redirects:
        answer = schemas.ArtifactPlace(url=url, expires_at=responses.format_timestamp(expires_at))
        return json_response(answer, headers={"Cache-Control": "no-store"})
    return Response(status_code=302, headers={"Location": url, "Cache-Control": "no-store"})


async def _presign_urls(
    services: Services, keys: Sequence[str], *, for_head: bool = False
) -> tuple[list[str], datetime]:
    """A URL for each object key, and when they expire at the earliest."""
    expires_s = services.config.presign_expires_s
    expires_at = datetime.now(UTC) + timedelta(seconds=expires_s)
    return await services.presign(keys, expires_s, head=for_head), expires_at


async def get_progress(request: Request, services: Services) -> Response:
    """GET /v1/jobs/{id}/progress."""
    seen = await load_job_view(request, services, artifacts=True)
    per_step = "per_step" in comma_separated_query(request, "include")
    return json_response(progress_of(seen, services.config.weights, per_step=per_step))


async def get_history(request: Request, services: Services) -> Response:
    """GET /v1/jobs/{id}/events: the whole history, page by page; on request with the proof of each event."""
    job = path_job_id(request)
    after = bounded_integer_query(request, "after_version", default=0, minimum=0, maximum=_MAX_JOB_VERSION)
    limit = bounded_integer_query(request, "limit", default=100, minimum=1, maximum=_MAX_HISTORY_PAGE_SIZE)
    include = comma_separated_query(request, "include")
    if include - {"proof"}:
        raise invalid_field_error("include", "must be proof")
    source = services.reader if include else services.log
    found: Sequence[RecordedEvent] = await source.read_stream(job, after=after, limit=limit + 1)
    if not _is_job_of_caller(request, found):
        found = []
        await load_job_view(request, services)
    return json_response(responses.history_answer(found[:limit], has_more=len(found) > limit))


async def get_log_lines(request: Request, services: Services) -> Response:
    """GET /v1/jobs/{id}/logs: the history as NDJSON, or its last lines."""
    since = time_query(request, "since_ts")
    most = services.config.logs_tail_max
    tail = bounded_integer_query(request, "tail", default=services.config.logs_tail_default, minimum=1, maximum=most)
    seen = await load_job_view(request, services)
    first = 1 if since is None else await first_version_since(services, seen, since)
    if since is None or "tail" in request.query_params:
        first = max(first, seen.version - tail + 1)
    content = _ndjson_pages(services, seen, first)
    if seen.version - first < _EVENTS_PER_READ:
        # Not streamed: a short response is then not compressed, and a database error is a 503.
        return Response(b"".join([page async for page in content]), media_type=_NDJSON_MEDIA_TYPE)
    return StreamingResponse(content, media_type=_NDJSON_MEDIA_TYPE)


async def _ndjson_pages(services: Services, view: JobView, first_version: int) -> AsyncGenerator[bytes, None]:
    while first_version <= view.version:
        limit = min(_EVENTS_PER_READ, view.version - first_version + 1)
        page = await services.log.read_stream(view.job_id, after=first_version - 1, limit=limit)
        yield b"".join(map(ndjson_line, page))
        first_version += limit


async def first_version_since(services: Services, view: JobView, since: datetime) -> int:
    """The version of a job's first event at or after a time; the next version if there is none.

    All later versions follow, also those whose clock was behind.
    """
    if view.created_at >= since:
        return 1
    # Up to the version that was seen: later events are new to the client.
    history = await services.log.read_stream(view.job_id, limit=view.version)
    return next((event.version for event in history if event.ts >= since), view.version + 1)


async def load_job_view(request: Request, services: Services, *, artifacts: bool = False) -> JobView:
    """The caller's job that the path names; raises 404 if there is none."""
    job = path_job_id(request)
    found = await services.queries.job_view(caller_of(request).tenant, job, artifacts=artifacts)
    if found is None:
        raise not_found_error(f"job {job}")
    return found


def _is_job_of_caller(request: Request, history: Sequence[RecordedEvent]) -> bool:
    """Whether it is the history of a job of the caller's tenant."""
    return bool(history) and (history[0].category, history[0].tenant) == ("job", caller_of(request).tenant)


def _parse_etags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


ROUTES = [
    get("/v1/jobs", list_jobs, READ_SCOPES, described.LIST_JOBS),
    get("/v1/jobs/{job_id}", get_job, READ_SCOPES, described.GET_JOB),
    get("/v1/jobs/{job_id}/artifacts", list_artifacts, READ_SCOPES, described.LIST_ARTIFACTS),
    get(
        "/v1/jobs/{job_id}/artifacts/{artifact_id}/content",
        get_artifact_content,
        READ_SCOPES,
        described.GET_ARTIFACT_CONTENT,
    ),
    get("/v1/jobs/{job_id}/progress", get_progress, READ_SCOPES, described.GET_PROGRESS),
    get("/v1/jobs/{job_id}/events", get_history, READ_SCOPES, described.GET_HISTORY),
    get("/v1/jobs/{job_id}/logs", get_log_lines, READ_SCOPES, described.GET_LOGS),
]
