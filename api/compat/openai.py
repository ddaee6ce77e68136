"""OpenAI Images at /openai/v1: each call is a job like any other, and the answer is its images."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import msgspec
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.access import READ_SCOPES, WRITE_SCOPES, ScopeGuard, Scopes, caller_of
from api.compat.openai_errors import PREFIX, openai_error
from api.compat.openai_request import DEFAULT_MODEL_PATTERN, ImageRequest, in_names_of_call, parse_image_request
from api.compat.repeats import job_of_earlier_attempt
from api.errors import ApiError, database_unavailable_error
from api.event_stream import EventStreamResponse
from api.inputs import read_json_body
from api.job_commands import accept_job
from api.requests import decode_json_object
from api.responses import json_response
from api.routing import Handler, Method
from api.services import Services
from api.waiting import wait_until_terminal
from artifacts.errors import ObjectChanged, ObjectMissing, ObjectStoreUnavailable
from artifacts.stored_object import StoredObject
from eventstore.errors import EventStoreError
from model_registry.view import ModelView
from projections.job_view import ArtifactView, JobView

_HEARTBEAT = b": waiting\n\n"
_OUTPUT_FORMATS = {"png": "png", "jpg": "jpeg"}


async def list_models(_request: Request, services: Services) -> Response:
    """GET /openai/v1/models: the models that can generate, the default first."""
    return json_response({"object": "list", "data": [_model_answer(model) for model in await _generators(services)]})


async def get_model(request: Request, services: Services) -> Response:
    """GET /openai/v1/models/{model}: by name or id."""
    return json_response(_model_answer(await _find_model(services, request.path_params["model"])))


async def generate_images(request: Request, services: Services) -> Response:
    """POST /openai/v1/images/generations: answers when the job has ended. A disconnect cancels nothing."""
    given = decode_json_object(await read_json_body(request, services.config.max_body_bytes))
    call = parse_image_request(given, await _requested_model_id(services, given.get("model")))
    job_id = await _accept_call(request, services, call)
    headers = {"X-Job-Id": str(job_id)}
    if call.stream:
        response = EventStreamResponse(services, _stream_images(services, caller_of(request).tenant, job_id))
        response.headers.update(headers)
        return response
    try:
        return await _whole_answer(request, services, call, job_id)
    except ApiError as error:
        error.headers |= headers
        raise


async def _whole_answer(request: Request, services: Services, call: ImageRequest, job_id: UUID) -> Response:
    tenant = caller_of(request).tenant
    while (view := await _wait_a_while(services, tenant, job_id)) is None:
        if await request.is_disconnected():
            return Response(status_code=204)
    answer = await _images_answer(services, view, call.response_format)
    return json_response(answer, headers={"X-Job-Id": str(job_id)})


async def _accept_call(request: Request, services: Services, call: ImageRequest) -> UUID:
    """The job of a call: of a repeated one without an Idempotency-Key, the job that it asked for before."""
    try:
        if _is_repeated(request) and "idempotency-key" not in request.headers:
            earlier = await job_of_earlier_attempt(request, services, call.submission)
            if earlier is not None:
                return earlier
        return (await accept_job(request, services, call.submission)).job_id
    except ApiError as error:
        raise in_names_of_call(error) from None


def _is_repeated(request: Request) -> bool:
    return request.headers.get("x-stainless-retry-count", "0") != "0"


async def _wait_a_while(services: Services, tenant: str, job_id: UUID) -> JobView | None:
    """A job with its images if it ends within a heartbeat; None if it goes on.

    Raises 503 if the process stops or the database can't be read: the client repeats its call, and finds the job.
    """
    loop = asyncio.get_running_loop()
    seconds = services.config.sse_heartbeat_s
    end = loop.time() + seconds
    view = await wait_until_terminal(services, tenant, job_id, seconds)
    if view is not None and view.terminal:
        whole = await services.queries.job_view(tenant, job_id, artifacts=True)
        if whole is not None:
            return _succeeded(whole)
    if view is None or services.stopping.is_set() or loop.time() < end:
        raise database_unavailable_error()
    return None


def _succeeded(view: JobView) -> JobView:
    if view.status == "succeeded":
        return view
    # Repeated, the call would fail in the same way, or make another job.
    headers = {"X-Should-Retry": "false"}
    if view.status == "cancelled":
        raise ApiError("conflict", "The job was cancelled.", {"code": "job_cancelled"}, headers)
    message = f"The job failed: {view.error_message or view.error_code or 'unknown'}"
    raise ApiError("internal", message, {"code": "job_failed"}, headers)


async def _images_answer(services: Services, view: JobView, response_format: str) -> dict[str, Any]:
    images = _result(view)
    if response_format == "url":
        urls = await services.presign([image.s3_key for image in images], services.config.presign_expires_s)
        data = [{"url": url} for url in urls]
    else:
        data = [{"b64_json": await _read_base64(services, image)} for image in images]
    common = await _common_fields(services, view)
    return {"created": int(view.created_at.timestamp()), "data": data, **common}


async def _stream_images(services: Services, tenant: str, job_id: UUID) -> AsyncGenerator[bytes, None]:
    """An event for each image, and a comment for every heartbeat until then."""
    try:
        yield _HEARTBEAT  # the headers go out at once
        with services.open_streams.occupy_slot("openai", services.config.max_streams) as free:
            _expect_free_slot(free)
            while (view := await _wait_a_while(services, tenant, job_id)) is None:
                yield _HEARTBEAT
            common = await _common_fields(services, view)
            for image in _result(view):
                yield _event("image_generation.completed", await _completed_event(services, view, image, common))
    except EventStoreError:
        error = database_unavailable_error()
        yield _event("error", openai_error(error.code, error.message, error.details))
    except ApiError as error:
        yield _event("error", openai_error(error.code, error.message, error.details))


def _expect_free_slot(free: bool) -> None:  # noqa: FBT001  # there is nothing else to tell
    if not free:
        raise ApiError("infra_unavailable", "Too many streams are open; try again.")


async def _completed_event(
    services: Services, view: JobView, image: ArtifactView, common: dict[str, Any]
) -> dict[str, Any]:
    no_tokens = {"image_tokens": 0, "text_tokens": 0}
    return {
        "type": "image_generation.completed",
        "b64_json": await _read_base64(services, image),
        "created_at": int(view.created_at.timestamp()),
        "background": "opaque",
        "quality": "auto",
        **common,
        "usage": {"input_tokens": 0, "input_tokens_details": no_tokens, "output_tokens": 0, "total_tokens": 0},
    }


async def _common_fields(services: Services, view: JobView) -> dict[str, Any]:
    """What is told of all images of a job. model: its name; the engine's, where no registered model was used."""
    chosen = view.steps[0].metadata
    model = None if chosen.get("model_id") is None else await services.models.model(UUID(str(chosen["model_id"])))
    first = _result(view)[0]
    return {
        "size": f"{first.width}x{first.height}",
        "output_format": _OUTPUT_FORMATS[first.format],
        "model": chosen.get("engine") if model is None else model.name,
    }


def _result(view: JobView) -> list[ArtifactView]:
    return [image for image in view.artifacts if image.step_id == view.last_step.step_id]


async def _read_base64(services: Services, image: ArtifactView) -> str:
    try:
        body = await services.read_object(image.s3_key, StoredObject(image.bytes, image.sha256))
    except (ObjectMissing, ObjectChanged):
        raise ApiError("not_found", f"The image {image.artifact_id} is lost; retry its job.") from None
    except ObjectStoreUnavailable:
        raise ApiError("infra_unavailable", "The object store can't be reached; try again.") from None
    return base64.b64encode(body).decode()


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


async def _requested_model_id(services: Services, given: object) -> UUID | None:
    """The model that a call names; None for the default."""
    if given is None or given == "" or (isinstance(given, str) and DEFAULT_MODEL_PATTERN.fullmatch(given)):
        return None
    return (await _find_model(services, given)).model_id


async def _find_model(services: Services, name_or_id: object) -> ModelView:
    for model in await _generators(services):
        if name_or_id in (model.name, str(model.model_id)):  # it may be no text
            return model
    raise ApiError(
        "not_found",
        f"The model {str(name_or_id)[:200]!r} does not exist.",
        {"field": "model", "code": "model_not_found"},
    )


async def _generators(services: Services) -> list[ModelView]:
    return [model for model in await services.models.all() if model.available and "generate" in model.capabilities]


def _model_answer(model: ModelView) -> dict[str, Any]:
    created = int(model.registered_at.timestamp())
    return {"id": model.name, "object": "model", "created": created, "owned_by": "dream-forge"}


def _route(method: Method, path: str, handler: Handler, scopes: Scopes) -> Route:
    async def endpoint(request: Request) -> Response:
        return await handler(request, request.app.state.services)

    return Route(PREFIX + path, endpoint, methods=[method], middleware=[Middleware(ScopeGuard, scopes=scopes)])


ROUTES = [
    _route("GET", "/models", list_models, READ_SCOPES),
    _route("GET", "/models/{model:path}", get_model, READ_SCOPES),
    _route("POST", "/images/generations", generate_images, WRITE_SCOPES),
]
