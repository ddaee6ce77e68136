"""The routes."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from api import health, jobs, stream
from api.errors import HANDLERS
from api.middleware import RequestIds
from api.responses import json_response
from api.services import Services


async def service(_request: Request) -> Response:
    """GET /v1/: who answers."""
    return json_response({"service": "dream-forge", "version": "v1"})


def _streaming(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route of a stream, which has no HEAD."""
    route = Route(path, endpoint)
    route.methods = {"GET"}
    return route


ROUTES = [
    Route("/v1/", service),
    Route("/v1/jobs", jobs.create, methods=["POST"]),
    Route("/v1/jobs/{job_id}", jobs.show),
    Route("/v1/jobs/{job_id}/artifacts", jobs.artifacts),
    Route("/v1/jobs/{job_id}/progress", jobs.progress),
    _streaming("/v1/jobs/{job_id}/progress/stream", stream.stream),
    Route("/v1/jobs/{job_id}/events", jobs.events),
    Route("/healthz", health.healthz),
    Route("/readyz", health.readyz),
]


def build(services: Services) -> ASGIApp:
    """The ASGI application."""
    app = Starlette(routes=ROUTES, exception_handlers=HANDLERS)
    app.state.services = services
    # Around everything: an answer of 500, too, must carry its request's id.
    return RequestIds(app)
