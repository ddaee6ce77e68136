"""The handler of /v1/anchors, and what it answers. Anchors are signed by the orchestrator or the command line alone."""

from starlette.requests import Request
from starlette.responses import Response

from api.inputs import whole_number
from api.responses import json_response
from api.schemas import Answer
from api.services import Services
from eventstore.integrity.anchors import Anchor
from projections.anchor_queries import newest_anchors

_MOST = 200


class AnchorList(Answer, frozen=True, kw_only=True):
    """The last anchors, the newest first. Each is to the letter what `dreamforge audit verify --anchor` reads."""

    items: list[Anchor]


async def list_anchors(request: Request) -> Response:
    """GET /v1/anchors: those of the log, for every tenant: they hold positions and hashes alone."""
    services: Services = request.app.state.services
    limit = whole_number(request, "limit", default=50, least=1, most=_MOST)
    return json_response(AnchorList(items=await newest_anchors(services.log, limit)))
