"""The handler of /v1/projections, and what it answers."""

from starlette.requests import Request
from starlette.responses import Response

from api.responses import json_response
from api.schemas import Answer
from api.services import Services
from projections.subscription_status import subscription_statuses


class ProjectionStanding(Answer, frozen=True, kw_only=True):
    """One partition as a projection, or the orchestrator, sees it.

    position: as far as it has come; head: the newest event's. lag: events that wait. lag_s: for how long the first of
    them has waited, in seconds; null where none does.
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


async def list_projections(request: Request) -> Response:
    """GET /v1/projections."""
    services: Services = request.app.state.services
    items = [
        ProjectionStanding(
            projection=one.projection,
            partition=one.partition,
            position=one.position,
            head=one.head,
            lag=one.lag,
            lag_s=one.lag_s,
        )
        for one in await subscription_statuses(services.log.database)
    ]
    return json_response(ProjectionList(items=items))
