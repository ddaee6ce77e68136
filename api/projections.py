"""The route of projections, and its answer types."""

from starlette.requests import Request
from starlette.responses import Response

from api.access import ADMIN_SCOPES
from api.openapi.service import LIST_PROJECTIONS
from api.responses import json_response
from api.routing import get
from api.schemas import Answer
from api.services import Services
from orchestrator.copying import copy_fields
from projections.subscription_status import read_subscription_statuses


class ProjectionStanding(Answer, frozen=True, kw_only=True):
    """One partition of a projection, or of the orchestrator.

    position: its checkpoint; head: the newest event's. lag: events after the checkpoint. lag_s: the age of the first of
    them, in seconds; null if there is none.
    """

    projection: str
    partition: int
    position: int
    head: int
    lag: int
    lag_s: float | None


class ProjectionList(Answer, frozen=True, kw_only=True):
    """Every projection in every partition, by name and number."""

    items: list[ProjectionStanding]


async def list_projections(_request: Request, services: Services) -> Response:
    """GET /v1/projections."""
    statuses = await read_subscription_statuses(services.log.database)
    return json_response(ProjectionList(items=[copy_fields(one, ProjectionStanding) for one in statuses]))


ROUTES = [get("/v1/projections", list_projections, ADMIN_SCOPES, LIST_PROJECTIONS)]
