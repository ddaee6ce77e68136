"""The handlers of POST: submit a job, cancel it, retry it, let a page follow it."""

import secrets
from collections.abc import Coroutine
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from api import preferences, requests, responses, schemas
from api.access import caller
from api.errors import ApiError, invalid, not_found, unavailable
from api.inputs import job_id, json_body, no_body
from api.jobs import load
from api.middleware import trace_id
from api.responses import json_response
from api.services import Services
from eventstore.committer import Transition
from eventstore.database import within
from eventstore.events import RecordedEvent
from eventstore.ids import derived_id, new_id
from eventstore.log import Append
from model_registry import parameters
from model_registry.view import ModelView
from orchestrator import codec
from orchestrator.decisions import Refused, RequestCancel, RequestRetry
from orchestrator.events.base import Meta, Private
from orchestrator.events.jobs import Idempotency, JobCreated
from orchestrator.plan import SEED_PRIME
from orchestrator.service import NoSuchJob, Unreadable, event

_LONGEST_KEY = 255
T = TypeVar("T")


class _Accepted(msgspec.Struct, frozen=True):
    """A job that stands in the log, by this request or, if replayed, by an earlier one."""

    job_id: UUID
    created_at: datetime
    replayed: bool = False


async def create(request: Request) -> Response:
    """POST /v1/jobs: the job, its steps and the duty to run the first are durable when this answers."""
    services: Services = request.app.state.services
    submission = requests.parse(await json_body(request, services.config.max_body_bytes))
    key = _idempotency_key(request)
    if key is None:
        accepted = await _accept(request, submission, new_id(), None)
    else:
        accepted = await _accept_once(request, submission, key)
    return await _answer(request, accepted)


async def cancel(request: Request) -> Response:
    """POST /v1/jobs/{id}/cancel."""
    return await _ask(request, RequestCancel())


async def retry(request: Request) -> Response:
    """POST /v1/jobs/{id}/retry."""
    return await _ask(request, RequestRetry())


async def stream_token(request: Request) -> Response:
    """POST /v1/jobs/{id}/stream_token: what lets a browser's EventSource, which can set no headers, follow the job."""
    services: Services = request.app.state.services
    await no_body(request, services.config.max_body_bytes)
    seen = await load(request)
    asker = caller(request)
    token, expires = await services.tokens.issue(seen.job_id, asker.tenant, asker.key_id)
    expires_at = responses.stamp(datetime.fromtimestamp(expires, UTC))
    answer = schemas.StreamToken(token=token, expires_at=expires_at)
    return json_response(answer, headers={"Cache-Control": "no-store"})


async def _accept_once(request: Request, submission: requests.Submission, key: bytes) -> _Accepted:
    """Accept a job under the id that its key stands for: of several that come at once the log lets one in."""
    services: Services = request.app.state.services
    job = derived_id(caller(request).tenant.encode(), key)
    idempotency = submission.idempotency(key)
    earlier = await services.log.stream(job, limit=1)
    if earlier:
        # The try before may have stopped waiting for a standby.
        await _soon(services, services.log.confirm_replicated())
        return _replayed(earlier[0], idempotency)
    accepted = await _accept(request, submission, job, idempotency)
    if accepted.replayed:
        return _replayed((await services.log.stream(job, limit=1))[0], idempotency)
    return accepted


async def _accept(
    request: Request, submission: requests.Submission, job: UUID, idempotency: Idempotency | None
) -> _Accepted:
    """Append a job's first event; `replayed` if the job was there before."""
    services: Services = request.app.state.services
    model_id = submission.request.model_id
    if model_id is not None:
        _expect_within(submission, await services.models.generator(model_id))
    created, private = requests.events(
        submission,
        seed=1 + secrets.randbelow(SEED_PRIME),
        step_ids=(new_id(), new_id()),
        max_pixels=services.config.max_pixels,
        idempotency=idempotency,
    )
    named = _named(request)
    if named is not None:
        private = replace(private, request_id=named.request_id, traceparent=named.traceparent)
    first = event(created, _cause(request), private=private)
    append = Append(stream=job, category="job", tenant=caller(request).tenant, expected=0, events=(first,))
    async with services.admission.slot(caller(request).tenant):
        answer = await _soon(services, services.committer.commit(Transition(append=append)))
    return _Accepted(job, first.ts, replayed=not answer.committed)


def _expect_within(submission: requests.Submission, model: ModelView | None) -> None:
    """Raise unless the model of a request is there, and takes what is asked of it."""
    field = submission.field_path("model_id")
    if model is None:
        raise invalid(field, "must be a model that is installed, enabled and can generate; see /v1/models")
    try:
        found = parameters.violation(model.parameters_schema, submission.parameters())
    except parameters.BadSchema as error:
        raise invalid(field, f"the parameters_schema of model {model.name} can't be used: {error}") from None
    if found is not None:
        field = field if found.parameter is None else submission.field_path(found.parameter)
        raise invalid(field, f"model {model.name} does not take it: {found.reason}")


def _replayed(earlier: RecordedEvent, idempotency: Idempotency) -> _Accepted:
    created = codec.body_if_readable(earlier)
    if created is None:
        raise _unreadable(earlier.stream_id)
    if not isinstance(created, JobCreated) or created.idempotency != idempotency:
        raise ApiError(
            "conflict",
            "This Idempotency-Key came with another request before (naming a default differs from leaving it open); "
            "send a new key with a new request.",
            {"field": "Idempotency-Key", "job_id": str(earlier.stream_id)},
        )
    return _Accepted(earlier.stream_id, earlier.ts, replayed=True)


async def _answer(request: Request, accepted: _Accepted) -> Response:
    """Answer at once, or when the job has ended if that was asked for or is set."""
    services: Services = request.app.state.services
    config = services.config
    preferred = preferences.wait(request)
    patience = preferred if config.eager_s is None else config.eager_s
    view = None
    if patience is not None:
        view = await preferences.until_terminal(services, caller(request).tenant, accepted.job_id, patience)
    headers = {
        "Location": f"/v1/jobs/{accepted.job_id}",
        "ETag": responses.etag(1 if view is None else view.version),
        **preferences.applied(preferred if config.eager_s is None else None),
    }
    if accepted.replayed:
        headers["Idempotency-Replayed"] = "true"
    answer = responses.job_answer(accepted.job_id, "queued" if view is None else view.status, accepted.created_at)
    ended = view is not None and view.terminal
    return json_response(answer, 200 if ended else config.create_status, headers)


async def _ask(request: Request, asked: RequestCancel | RequestRetry) -> Response:
    services: Services = request.app.state.services
    job = job_id(request)
    await no_body(request, services.config.max_body_bytes)
    tenant = caller(request).tenant
    try:
        # A job that runs again waits like a new one.
        async with services.admission.slot(tenant) if isinstance(asked, RequestRetry) else nullcontext():
            state = await _soon(services, services.jobs.request(tenant, job, asked, _cause(request), _named(request)))
    except Unreadable as error:
        await _soon(services, services.jobs.report(error, "api"))
        raise _unreadable(job) from None
    except NoSuchJob:
        raise not_found(f"job {job}") from None
    except Refused as refusal:
        raise ApiError("conflict", str(refusal), {"field": "status", "job_id": str(job)}) from None
    view = await services.queries.job(tenant, job)
    if view is None:
        raise not_found(f"job {job}")
    answer = responses.job_answer(job, view.status, view.created_at)
    headers = {"Location": f"/v1/jobs/{job}", "ETag": responses.etag(view.version)}
    return json_response(answer, 202 if state.finished is None else 200, headers)


def _unreadable(job: UUID) -> ApiError:
    return ApiError(
        "infra_unavailable",
        "The job's history can't be read; it is being set aside.",
        {"job_id": str(job)},
        {"Retry-After": "2"},
    )


async def _soon(services: Services, work: Coroutine[Any, Any, T]) -> T:
    """Await a write; one that the database keeps waiting is given up."""
    try:
        return await within(services.config.patience_s, work)
    except TimeoutError:
        raise unavailable() from None


def _cause(request: Request) -> Meta:
    """What all events that a request causes say of it, for good: nothing that its client wrote."""
    return Meta(request_id=request.state.own_request_id, key_id=caller(request).key_id)


def _named(request: Request) -> Private | None:
    """What the client calls its request, until it is erased. A traceparent that is malformed counts as absent."""
    given = request.headers.get("traceparent", "").strip()
    traceparent = None if trace_id(given) is None else given
    client_id = request.state.client_request_id
    return Private(request_id=client_id, traceparent=traceparent) if client_id or traceparent else None


def _idempotency_key(request: Request) -> bytes | None:
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = given[0].encode("latin-1")
    try:
        length = len(key.decode())
    except UnicodeDecodeError:
        length = len(key)
    if len(given) > 1 or not 1 <= length <= _LONGEST_KEY:
        raise invalid("Idempotency-Key", f"must be one key of 1 to {_LONGEST_KEY} characters")
    return key
