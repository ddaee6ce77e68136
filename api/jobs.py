"""The handlers of /v1/jobs."""

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from uuid import UUID

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api import requests, responses
from api.errors import ApiError, invalid, not_found, unavailable
from api.responses import json_response
from api.services import Services
from eventstore.committer import Transition
from eventstore.events import Meta
from eventstore.ids import new_id
from eventstore.log import Append
from orchestrator.plan import SEED_PRIME
from orchestrator.transact import event
from projections.progress import progress as progress_of
from projections.views import JobView

_MOST_EVENTS = 1000


async def create(request: Request) -> Response:
    """POST /v1/jobs: the job, its steps and the duty to run the first are durable when this answers."""
    services: Services = request.app.state.services
    wanted = requests.parse(await _body(request, services.config.max_body_bytes))
    created, private = requests.events(
        wanted,
        seed=1 + secrets.randbelow(SEED_PRIME),
        step_ids=(new_id(), new_id()),
        max_pixels=services.config.max_pixels,
    )
    job_id = new_id()
    first = event(created, Meta(request_id=request.state.request_id), private=private)
    transition = Transition(append=Append(stream=job_id, expected=0, events=(first,)))
    try:
        async with asyncio.timeout(services.config.commit_timeout_s):
            await services.committer.commit(transition)
    except TimeoutError:
        raise unavailable() from None
    return json_response(
        responses.created(job_id, "queued", first.ts),
        services.config.create_status,
        {"Location": f"/v1/jobs/{job_id}", "ETag": '"v1"'},
    )


async def show(request: Request) -> Response:
    """GET /v1/jobs/{id}."""
    view = await load(request)
    etag = f'"v{view.version}"'
    if {etag, "*"} & _etags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers={"ETag": etag})
    return json_response(responses.job(view), headers={"ETag": etag})


async def artifacts(request: Request) -> Response:
    """GET /v1/jobs/{id}/artifacts."""
    services: Services = request.app.state.services
    view = await load(request, artifacts=True)
    chosen = list(view.artifacts)
    wanted = request.query_params.get("step")
    if wanted is not None:
        if wanted not in {"generate", "upscale"}:
            raise invalid("step", "must be generate or upscale")
        ids = {step.step_id for step in view.steps if step.name == wanted}
        chosen = [one for one in chosen if one.step_id in ids]
    expires_s = services.config.presign_expires_s
    expires_at = datetime.now(UTC) + timedelta(seconds=expires_s)
    urls = await services.presign([one.s3_key for one in chosen], expires_s)
    return json_response(responses.artifacts(view, chosen, urls, expires_at))


async def progress(request: Request) -> Response:
    """GET /v1/jobs/{id}/progress."""
    services: Services = request.app.state.services
    view = await load(request, artifacts=True)
    per_step = "per_step" in included(request)
    return json_response(progress_of(view, services.config.weights, per_step=per_step))


async def events(request: Request) -> Response:
    """GET /v1/jobs/{id}/events: the whole history, page by page."""
    services: Services = request.app.state.services
    job = job_id(request)
    after = whole_number(request, "after_version", default=0, least=0, most=2**31 - 1)
    limit = whole_number(request, "limit", default=100, least=1, most=_MOST_EVENTS)
    found = await services.log.stream(job, after=after, limit=limit + 1)
    if not found:
        await load(request)
    return json_response(responses.history(found[:limit], has_more=len(found) > limit))


async def load(request: Request, *, artifacts: bool = False) -> JobView:
    """The job that the path names; 404 where there's none."""
    services: Services = request.app.state.services
    job = job_id(request)
    view = await services.queries.job(job, artifacts=artifacts)
    if view is None:
        raise not_found(f"job {job}")
    return view


def job_id(request: Request) -> UUID:
    """The id in the path; one that is no UUID names no job."""
    given = request.path_params["job_id"]
    try:
        return UUID(given)
    except ValueError:
        raise not_found(f"job {given}") from None


def included(request: Request) -> set[str]:
    """What `include` asks for: names with commas between, or the parameter repeated."""
    return {name.strip() for value in request.query_params.getlist("include") for name in value.split(",")}


def whole_number(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """A query parameter within bounds."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 20 and least <= int(given) <= most):
        raise invalid(name, f"must be a whole number from {least} to {most}")
    return int(given)


def _etags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


async def _body(request: Request, most: int) -> bytes:
    _expect_json(request.headers.get("content-type", ""))
    too_large = ApiError("payload_too_large", f"The body is over {most} bytes.", {"field": "body", "max_bytes": most})
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    except ClientDisconnect:
        raise invalid("body", "the connection ended before the body did") from None
    return bytes(body)


def _expect_json(content_type: str) -> None:
    kind = content_type.split(";", maxsplit=1)[0].strip().lower()
    if kind in {"", "application/json"} or (kind.startswith("application/") and kind.endswith("+json")):
        return
    raise ApiError(
        "unsupported_media_type",
        f"The body is declared as {kind}; send application/json.",
        {"field": "Content-Type", "reason": "must be application/json"},
    )
