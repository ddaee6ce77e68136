"""The routes of models, and their answer types. Only the command line changes the registry."""

from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response

from api.access import READ
from api.errors import not_found
from api.inputs import one_of, path_id, whole_number
from api.openapi.models import GET_MODEL, LIST_MODELS
from api.responses import json_response
from api.routing import get
from api.schemas import Answer, Sha256
from api.services import Services
from model_registry.view import ModelView
from orchestrator.events.models import ModelKind
from orchestrator.events.steps import StepName

_MAX_MODELS = 200
_MAX_PAGE = 2**31 - 1


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
    available = one_of(request, "enabled", ("true", "false")) != "false"
    page = whole_number(request, "page", default=1, least=1, most=_MAX_PAGE)
    limit = whole_number(request, "limit", default=50, least=1, most=_MAX_MODELS)
    found = [model for model in await services.models.all() if model.available is available]
    shown = found[(page - 1) * limit : page * limit]
    return json_response(
        ModelList(models=[summary(model) for model in shown], page=page, limit=limit, total=len(found))
    )


async def show(request: Request, services: Services) -> Response:
    """GET /v1/models/{id}."""
    model_id = path_id(request, "model_id", "model")
    found = await services.models.model(model_id)
    if found is None:
        raise not_found(f"model {model_id}")
    return json_response(detail(found))


def summary(model: ModelView) -> ModelSummary:
    """A model as the list shows it."""
    return ModelSummary(
        id=model.model_id,
        name=model.name,
        kind=model.kind,
        version=model.version,
        installed=model.installed,
        enabled=model.enabled,
        parameters_schema=model.parameters_schema,
    )


def detail(model: ModelView) -> ModelDetail:
    """Everything about a model."""
    return ModelDetail(
        **asdict(summary(model)),
        capabilities=list(model.capabilities),
        source_uri=model.source_uri,
        local_path=model.local_path,
        files_json=[ModelFile(path=file.path, sha256=file.sha256, size=file.size) for file in model.files],
    )


ROUTES = [
    get("/v1/models", list_models, READ, LIST_MODELS),
    get("/v1/models/{model_id}", show, READ, GET_MODEL),
]
