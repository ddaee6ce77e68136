"""The handlers that read jobs."""

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api import lines, preferences, responses, schemas
from api.access import caller
from api.cursors import JobsCursor
from api.errors import invalid, not_found
from api.inputs import clamped_number, included, job_id, moment, one_of, path_id, whole_number
from api.responses import json_response
from api.services import Services
from eventstore.events import RecordedEvent
from orchestrator.events.jobs import JobErased
from orchestrator.events.steps import Status
from orchestrator.step_kinds import STEP_KINDS
from projections.job_view import JobView, as_of, of_history
from projections.progress import progress as progress_of

_MOST_EVENTS = 1000
_PAGE = 500
_NDJSON = "application/x-ndjson"
_LARGEST_VERSION = 2**31 - 1


async def list_jobs(request: Request) -> Response:
    """GET /v1/jobs: the newest first, page by page."""
    services: Services = request.app.state.services
    limit = clamped_number(request, "limit", default=20, least=1, most=200)
    status = one_of(request, "status", get_args(Status))
    cursor = _jobs_cursor(request)
    found = await services.queries.jobs(
        caller(request).tenant,
        status=status,  # type: ignore[arg-type]  # one of them, as just checked
        before=None if cursor is None else (cursor.created_at, cursor.job_id),
        limit=limit + 1,
    )
    page, more = found[:limit], found[limit:]
    next_cursor = JobsCursor(page[-1].created_at, page[-1].job_id).encode() if more else None
    return json_response(responses.job_list(page, next_cursor))


def _jobs_cursor(request: Request) -> JobsCursor | None:
    given = request.query_params.get("cursor")
    if given is None:
        return None
    try:
        return JobsCursor.decode(given)
    except ValueError:
        raise invalid("cursor", "is none of this list; take it from next_cursor as it stands") from None


async def show(request: Request) -> Response:
    """GET /v1/jobs/{id}: as it is, as it was, or once it has ended."""
    services: Services = request.app.state.services
    headers: dict[str, str] = {}
    seen, changed_at = await _as_it_was(request)
    if seen is None:
        seen = await load(request)
        patience = preferences.wait(request)
        if patience is not None and not seen.terminal:
            seen = await preferences.until_terminal(services, caller(request).tenant, seen.job_id, patience) or seen
        headers = preferences.applied(patience)
        changed_at = seen.version
    headers["ETag"] = responses.etag(changed_at)
    if {headers["ETag"], "*"} & _etags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return json_response(responses.job(seen), headers=headers)


async def _as_it_was(request: Request) -> tuple[JobView | None, int]:
    """The job after a version, or at a time: after the longest beginning of its history whose `ts` are all by then.

    Beside it the version that last changed this answer: its own, or that of a later erasure.
    """
    version = request.query_params.get("as_of_version")
    at = moment(request, "as_of")
    if version is None and at is None:
        return None, 0
    if version is not None and at is not None:
        raise invalid("as_of", "can't stand beside as_of_version; give one of them")
    history = await _history(request)
    if at is not None:
        beginning = as_of(history, at)
    else:
        count = whole_number(request, "as_of_version", default=0, least=0, most=_LARGEST_VERSION)
        if count > len(history):
            raise invalid("as_of_version", f"the job is at version {len(history)}", version=len(history))
        beginning = history[:count]
    seen = of_history(beginning, lenient=True)
    if seen is None:
        raise not_found(f"job {job_id(request)} at that time")
    erased = [event.version for event in history if event.code == JobErased.code]
    return seen, max([seen.version, *erased])


async def _history(request: Request) -> list[RecordedEvent]:
    services: Services = request.app.state.services
    job = job_id(request)
    history = await services.log.stream(job)
    if not _is_ours(request, history):
        raise not_found(f"job {job}")
    return history


async def artifacts(request: Request) -> Response:
    """GET /v1/jobs/{id}/artifacts."""
    services: Services = request.app.state.services
    wanted = one_of(request, "step", tuple(STEP_KINDS))
    seen = await load(request, artifacts=True)
    ids = {step.step_id for step in seen.steps if wanted in {None, step.name}}
    chosen = [one for one in seen.artifacts if one.step_id in ids]
    expires_s = services.config.presign_expires_s
    expires_at = datetime.now(UTC) + timedelta(seconds=expires_s)
    urls = await services.presign([one.s3_key for one in chosen], expires_s)
    return json_response(responses.artifacts(seen, chosen, urls, expires_at))


async def content(request: Request) -> Response:
    """GET /v1/jobs/{id}/artifacts/{artifact_id}/content: to where the bytes are, or where that is."""
    services: Services = request.app.state.services
    artifact_id = path_id(request, "artifact_id", "artifact")
    redirects = one_of(request, "redirect", ("0", "1")) != "0"
    seen = await load(request, artifacts=True)
    key = next((one.s3_key for one in seen.artifacts if one.artifact_id == artifact_id), None)
    if key is None:
        raise not_found(f"artifact {artifact_id} of job {seen.job_id}")
    expires_s = services.config.presign_expires_s
    expires_at = datetime.now(UTC) + timedelta(seconds=expires_s)
    [url] = await services.presign([key], expires_s, head=redirects and request.method == "HEAD")
    if not redirects:
        answer = schemas.ArtifactPlace(url=url, expires_at=responses.stamp(expires_at))
        return json_response(answer, headers={"Cache-Control": "no-store"})
    return Response(status_code=302, headers={"Location": url, "Cache-Control": "no-store"})


async def progress(request: Request) -> Response:
    """GET /v1/jobs/{id}/progress."""
    services: Services = request.app.state.services
    seen = await load(request, artifacts=True)
    per_step = "per_step" in included(request)
    return json_response(progress_of(seen, services.config.weights, per_step=per_step))


async def events(request: Request) -> Response:
    """GET /v1/jobs/{id}/events: the whole history, page by page; with the proof of each event, if asked for."""
    services: Services = request.app.state.services
    job = job_id(request)
    after = whole_number(request, "after_version", default=0, least=0, most=_LARGEST_VERSION)
    limit = whole_number(request, "limit", default=100, least=1, most=_MOST_EVENTS)
    include = included(request)
    if include - {"proof"}:
        raise invalid("include", "must be proof")
    source = services.reader if include else services.log
    found: Sequence[RecordedEvent] = await source.stream(job, after=after, limit=limit + 1)
    if not _is_ours(request, found):
        found = []
        await load(request)
    return json_response(responses.history(found[:limit], has_more=len(found) > limit))


async def logs(request: Request) -> Response:
    """GET /v1/jobs/{id}/logs: the history as lines of NDJSON, streamed; or the end of it."""
    services: Services = request.app.state.services
    since = moment(request, "since_ts")
    most = services.config.logs_tail_max
    tail = whole_number(request, "tail", default=services.config.logs_tail_default, least=1, most=most)
    seen = await load(request)
    first = 1 if since is None else await first_since(services, seen, since)
    if since is None or "tail" in request.query_params:
        first = max(first, seen.version - tail + 1)
    content = _lines(services, seen, first)
    if seen.version - first < _PAGE:
        # At once, so that it is compressed only if it is worth it, and a database that is away is a 503.
        return Response(b"".join([page async for page in content]), media_type=_NDJSON)
    return StreamingResponse(content, media_type=_NDJSON)


async def _lines(services: Services, seen: JobView, first: int) -> AsyncGenerator[bytes, None]:
    while first <= seen.version:
        limit = min(_PAGE, seen.version - first + 1)
        page = await services.log.stream(seen.job_id, after=first - 1, limit=limit)
        yield b"".join(lines.line(event) for event in page)
        first += limit


async def first_since(services: Services, seen: JobView, since: datetime) -> int:
    """The version of a job's first event that did not happen before a time; the next one to come if all did.

    From there on nothing is left out, even where the clocks of two appenders disagree.
    """
    if seen.created_at >= since:
        return 1
    history = await services.log.stream(seen.job_id, limit=seen.version)
    # Not beyond the version that was seen: what came since is new to the client.
    return next((event.version for event in history if event.ts >= since), seen.version + 1)


async def load(request: Request, *, artifacts: bool = False) -> JobView:
    """The job that the path names; 404 where there's none."""
    services: Services = request.app.state.services
    job = job_id(request)
    found = await services.queries.job(caller(request).tenant, job, artifacts=artifacts)
    if found is None:
        raise not_found(f"job {job}")
    return found


def _is_ours(request: Request, history: Sequence[RecordedEvent]) -> bool:
    """Is it the history of a job of the caller's tenant?"""
    return bool(history) and (history[0].category, history[0].tenant) == ("job", caller(request).tenant)


def _etags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
