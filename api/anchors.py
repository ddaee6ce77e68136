"""The route of anchors, and its answer type."""

from starlette.requests import Request
from starlette.responses import Response

from api.access import AUDIT_SCOPES
from api.inputs import bounded_integer_query
from api.openapi.log import LIST_ANCHORS
from api.responses import json_response
from api.routing import get
from api.schemas import Answer
from api.services import Services
from eventstore.integrity.anchors import Anchor
from projections.anchor_queries import newest_anchors

_MAX_ANCHORS_LISTED = 200


class AnchorList(Answer, frozen=True, kw_only=True):
    """The last anchors, the newest first. `dreamforge audit verify --anchor` reads each as it stands."""

    items: list[Anchor]


async def list_anchors(request: Request, services: Services) -> Response:
    """GET /v1/anchors: the same for every tenant, since anchors contain only positions and hashes."""
    limit = bounded_integer_query(request, "limit", default=50, minimum=1, maximum=_MAX_ANCHORS_LISTED)
    return json_response(AnchorList(items=await newest_anchors(services.log, limit)))


ROUTES = [get("/v1/anchors", list_anchors, AUDIT_SCOPES, LIST_ANCHORS)]
