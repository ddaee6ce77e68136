"""Routes that change jobs: submit, cancel, retry. Also the stream token of a job."""

import asyncio
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

from api import requests, responses, schemas
from api.access import READ_SCOPES, WRITE_SCOPES, caller_of
from api.errors import ApiError, database_unavailable_error, invalid_field_error, not_found_error
from api.inputs import expect_empty_body, path_job_id, read_json_body
from api.jobs import load_job_view
from api.middleware import parse_trace_id
from api.openapi import jobs as described
from api.responses import json_response
from api.routing import post
from api.services import Services
from api.waiting import preference_applied_header, preferred_wait_s, wait_until_terminal
from eventstore.committer import Transition
from eventstore.database import run_with_time_limit
from eventstore.events import RecordedEvent
from eventstore.ids import derive_id, new_id
from eventstore.log import Append
from model_registry import parameters
from model_registry.view import ModelView
from orchestrator import codec
from orchestrator.decisions import CommandRejected, RequestCancel, RequestRetry
from orchestrator.events import Idempotency, JobCreated, Meta, PersonalText, Status
from orchestrator.plan import SEED_PRIME
from orchestrator.service import NoSuchJob, UnreadableJob, make_event

_MAX_IDEMPOTENCY_KEY_LENGTH = 255
T = TypeVar("T")


class AcceptedJob(msgspec.Struct, frozen=True):
    """A job in the log. replayed: an earlier request with the same key created it."""

    job_id: UUID
    created_at: datetime
    replayed: bool = False


async def create_job(request: Request, services: Services) -> Response:
    """POST /v1/jobs: when this answers, the job, its steps and the duty to run the first are durable."""
    submission = requests.parse_job_request(await read_json_body(request, services.config.max_body_bytes))
    accepted = await accept_job(request, services, submission)
    return await _accepted_job_response(request, services, accepted)


async def accept_job(request: Request, services: Services, submission: requests.Submission) -> AcceptedJob:
    """Append the job that a request asks for, or find the one that its Idempotency-Key names."""
    key = _idempotency_key(request)
    if key is None:
        return await _append_job_created(request, services, submission, new_id(), None)
    return await _accept_idempotently(request, services, submission, key)


async def cancel_job(request: Request, services: Services) -> Response:
    """POST /v1/jobs/{id}/cancel."""
    return await _request_job_change(request, services, RequestCancel())


async def retry_job(request: Request, services: Services) -> Response:
    """POST /v1/jobs/{id}/retry."""
    return await _request_job_change(request, services, RequestRetry())


async def create_stream_token(request: Request, services: Services) -> Response:
    """POST /v1/jobs/{id}/stream_token: for a browser's EventSource, which can't send headers."""
    await expect_empty_body(request, services.config.max_body_bytes)
    seen = await load_job_view(request, services)
    sender = caller_of(request)
    token, expires = await services.tokens.issue_token(seen.job_id, sender.tenant, sender.key_id)
    expires_at = responses.format_timestamp(datetime.fromtimestamp(expires, UTC))
    answer = schemas.StreamToken(token=token, expires_at=expires_at)
    return json_response(answer, headers={"Cache-Control": "no-store"})


async def _accept_idempotently(
    request: Request, services: Services, submission: requests.Submission, idempotency_key: bytes
) -> AcceptedJob:
    """Accept a job under the id that its key determines: of concurrent requests, the log accepts one."""
    job = derive_id(caller_of(request).tenant.encode(), idempotency_key)
    idempotency = submission.idempotency_record(idempotency_key)
    earlier = await services.log.read_stream(job, limit=1)
    if earlier:
        # The earlier request may have ended before its commit was replicated.
        await _await_write_or_503(services, services.log.confirm_replicated())
        return _accepted_job_of_earlier_request(earlier[0], idempotency)
    accepted = await _append_job_created(request, services, submission, job, idempotency)
    if accepted.replayed:
        return _accepted_job_of_earlier_request((await services.log.read_stream(job, limit=1))[0], idempotency)
    return accepted


async def _append_job_created(
    request: Request, services: Services, submission: requests.Submission, job: UUID, idempotency: Idempotency | None
) -> AcceptedJob:
    """Append a job's first event. `replayed` if the job exists already."""
    model_id = submission.request.model_id
    if model_id is not None:
        _check_requested_model(submission, await services.models.generator(model_id))
    created, private = requests.job_created_event(
        submission,
        seed=1 + secrets.randbelow(SEED_PRIME),
        step_ids=(new_id(), new_id()),
        max_pixels=services.config.max_pixels,
        idempotency=idempotency,
    )
    ids = _client_request_ids(request)
    if ids is not None:
        private = replace(private, request_id=ids.request_id, traceparent=ids.traceparent)
    first = make_event(created, _event_metadata(request), private=private)
    append = Append(stream=job, category="job", tenant=caller_of(request).tenant, expected=0, events=(first,))
    async with services.admission.reserve_job(caller_of(request).tenant):
        try:
            # Unlike other writes it ends at once when it is cancelled, and needs no task of its own.
            async with asyncio.timeout(services.config.patience_s):
                answer = await services.committer.commit(Transition(append=append))
        except TimeoutError:
            raise database_unavailable_error() from None
    return AcceptedJob(job, first.ts, replayed=not answer.committed)


def _check_requested_model(submission: requests.Submission, model: ModelView | None) -> None:
    """Raise unless the requested model exists and accepts the requested parameters."""
    field = submission.client_field_path("model_id")
    if model is None:
        raise invalid_field_error(field, "must be a model that is installed, enabled and can generate; see /v1/models")
    try:
        found = parameters.find_violation(model.parameters_schema, submission.generate_parameters())
    except parameters.BadSchema as error:
        raise invalid_field_error(
            field, f"the parameters_schema of model {model.name} can't be used: {error}"
        ) from None
    if found is not None:
        field = field if found.parameter is None else submission.client_field_path(found.parameter)
        raise invalid_field_error(field, f"model {model.name} does not take it: {found.reason}")


def _accepted_job_of_earlier_request(earlier_event: RecordedEvent, idempotency: Idempotency) -> AcceptedJob:
    created = codec.decode_body_or_none(earlier_event)
    if created is None:
        raise _unreadable_history_error(earlier_event.stream_id)
    if not isinstance(created, JobCreated) or created.idempotency != idempotency:
        raise ApiError(
            "conflict",
            "This Idempotency-Key came with another request before (naming a default differs from leaving it open); "
            "send a new key with a new request.",
            {"field": "Idempotency-Key", "job_id": str(earlier_event.stream_id)},
        )
    return AcceptedJob(earlier_event.stream_id, earlier_event.ts, replayed=True)


async def _accepted_job_response(request: Request, services: Services, accepted: AcceptedJob) -> Response:
    """Answer at once, or wait for the job's end if `Prefer: wait` or `DF_EAGER` asks for it."""
    config = services.config
    preferred = preferred_wait_s(request) if config.eager_s is None else None
    seconds = config.eager_s if preferred is None else preferred
    view = None
    if seconds is not None:
        view = await wait_until_terminal(services, caller_of(request).tenant, accepted.job_id, seconds)
    status: Status = "queued" if view is None else view.status
    return json_response(
        responses.job_answer(accepted.job_id, status, accepted.created_at),
        200 if view is not None and view.terminal else config.create_status,
        _job_headers(accepted.job_id, 1 if view is None else view.version)
        | preference_applied_header(preferred)
        | ({"Idempotency-Replayed": "true"} if accepted.replayed else {}),
    )


async def _request_job_change(request: Request, services: Services, change: RequestCancel | RequestRetry) -> Response:
    job = path_job_id(request)
    await expect_empty_body(request, services.config.max_body_bytes)
    tenant = caller_of(request).tenant
    try:
        # A retried job counts as open, like a new one.
        async with services.admission.reserve_job(tenant) if isinstance(change, RequestRetry) else nullcontext():
            deciding = services.jobs.commit_request(
                tenant, job, change, _event_metadata(request), _client_request_ids(request)
            )
            state = await _await_write_or_503(services, deciding)
    except UnreadableJob as error:
        await _await_write_or_503(services, services.jobs.report_unreadable(error, "api"))
        raise _unreadable_history_error(job) from None
    except NoSuchJob:
        raise not_found_error(f"job {job}") from None
    except CommandRejected as rejection:
        raise ApiError("conflict", str(rejection), {"field": "status", "job_id": str(job)}) from None
    view = await load_job_view(request, services)
    answer = responses.job_answer(job, view.status, view.created_at)
    return json_response(answer, 202 if state.outcome is None else 200, _job_headers(job, view.version))


def _job_headers(job: UUID, version: int) -> dict[str, str]:
    return {"Location": f"/v1/jobs/{job}", "ETag": responses.job_etag(version)}


def _unreadable_history_error(job: UUID) -> ApiError:
    return ApiError(
        "infra_unavailable",
        "The job's history can't be read; it is being set aside.",
        {"job_id": str(job)},
        {"Retry-After": "2"},
    )


async def _await_write_or_503(services: Services, write: Coroutine[Any, Any, T]) -> T:
    """Await a write; raise 503 if the database takes too long."""
    try:
        return await run_with_time_limit(services.config.patience_s, write)
    except TimeoutError:
        raise database_unavailable_error() from None


def _event_metadata(request: Request) -> Meta:
    """The permanent metadata of all events that a request causes. It contains nothing from the client."""
    return Meta(request_id=request.state.own_request_id, key_id=caller_of(request).key_id)


def _client_request_ids(request: Request) -> PersonalText | None:
    """The ids that the client gave its request, as private text. A malformed traceparent is ignored."""
    given = request.headers.get("traceparent", "").strip()
    traceparent = given if given and parse_trace_id(given) is not None else None
    client_id = request.state.client_request_id
    return PersonalText(request_id=client_id, traceparent=traceparent) if client_id or traceparent else None


def _idempotency_key(request: Request) -> bytes | None:
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = given[0].encode("latin-1")
    try:
        length = len(key.decode())
    except UnicodeDecodeError:
        length = len(key)
    if len(given) > 1 or not 1 <= length <= _MAX_IDEMPOTENCY_KEY_LENGTH:
        raise invalid_field_error(
            "Idempotency-Key", f"must be one key of 1 to {_MAX_IDEMPOTENCY_KEY_LENGTH} characters"
        )
    return key


ROUTES = [
    post("/v1/jobs", create_job, WRITE_SCOPES, described.CREATE_JOB),
    post("/v1/jobs/{job_id}/cancel", cancel_job, WRITE_SCOPES, described.CANCEL_JOB),
    post("/v1/jobs/{job_id}/retry", retry_job, WRITE_SCOPES, described.RETRY_JOB),
    post("/v1/jobs/{job_id}/stream_token", create_stream_token, READ_SCOPES, described.CREATE_STREAM_TOKEN),
]
