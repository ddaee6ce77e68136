"""The routes of models, and their answer types. Only the command line changes the registry."""

from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from api.access import READ_SCOPES
from api.errors import not_found_error
from api.inputs import bounded_integer_query, choice_query, path_uuid
from api.openapi.models import GET_MODEL, LIST_MODELS
from api.responses import json_response
from api.routing import get
from api.schemas import Answer, Sha256, StepName
from api.services import Services
from model_registry.view import ModelView
from orchestrator.copying import copy_fields
from orchestrator.events import ModelKind

_MAX_MODELS_PER_PAGE = 200
_MAX_PAGE_NUMBER = 2**31 - 1


class ModelSummary(Answer, frozen=True, kw_only=True):
    """A model as the list shows it.

    installed: its files were intact when they were last read. parameters_schema: JSON Schema of a request's parameters.
    """

    id: UUID
    name: str
    kind: ModelKind
    version: str
    installed: bool
    enabled: bool
    parameters_schema: dict[str, Any]


class ModelFile(Answer, frozen=True, kw_only=True):
    """A file of a model. path: within local_path; size: in bytes."""

    path: str
    sha256: Sha256
    size: Annotated[int, Meta(ge=0)]


class ModelDetail(ModelSummary, frozen=True, kw_only=True):
    """One model. capabilities: the steps that it can run."""

    capabilities: list[StepName]
    source_uri: str
    local_path: str
    files_json: list[ModelFile]


class ModelList(Answer, frozen=True, kw_only=True):
    """A page of models. total: on all pages."""

    models: list[ModelSummary]
    page: int
    limit: int
    total: int


async def list_models(request: Request, services: Services) -> Response:
    """GET /v1/models: those that jobs may use, or the others; the default generator first, upscalers last."""
    available = choice_query(request, "enabled", ("true", "false")) != "false"
    page = bounded_integer_query(request, "page", default=1, minimum=1, maximum=_MAX_PAGE_NUMBER)
    limit = bounded_integer_query(request, "limit", default=50, minimum=1, maximum=_MAX_MODELS_PER_PAGE)
    found = [model for model in await services.models.all() if model.available is available]
    shown = found[(page - 1) * limit : page * limit]
    return json_response(
        ModelList(models=[model_summary(model) for model in shown], page=page, limit=limit, total=len(found))
    )


async def get_model(request: Request, services: Services) -> Response:
    """GET /v1/models/{id}."""
    model_id = path_uuid(request, "model_id", "model")
    found = await services.models.model(model_id)
    if found is None:
        raise not_found_error(f"model {model_id}")
    return json_response(model_detail(found))


def model_summary(model: ModelView) -> ModelSummary:
    """A model as the list shows it."""
    return copy_fields(model, ModelSummary, id=model.model_id)


def model_detail(model: ModelView) -> ModelDetail:
    """Everything about a model."""
    files = [copy_fields(file, ModelFile) for file in model.files]
    return copy_fields(model, ModelDetail, id=model.model_id, capabilities=list(model.capabilities), files_json=files)


ROUTES = [
    get("/v1/models", list_models, READ_SCOPES, LIST_MODELS),
    get("/v1/models/{model_id}", get_model, READ_SCOPES, GET_MODEL),
]
