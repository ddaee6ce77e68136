"""The routes."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import health, jobs, stream
from api.errors import HANDLERS
from api.jobs import json_response
from api.middleware import RequestIds
from api.services import Services


async def service(_request: Request) -> Response:
    """GET /v1/: who answers."""
    return json_response({"service": "dream-forge", "version": "v1"})


ROUTES = [
    Route("/v1/", service),
    Route("/v1/jobs", jobs.create, methods=["POST"]),
    Route("/v1/jobs/{job_id}", jobs.show),
    Route("/v1/jobs/{job_id}/artifacts", jobs.artifacts),
    Route("/v1/jobs/{job_id}/progress", jobs.progress),
    Route("/v1/jobs/{job_id}/progress/stream", stream.stream),
    Route("/v1/jobs/{job_id}/events", jobs.events),
    Route("/healthz", health.healthz),
    Route("/readyz", health.readyz),
]


def build(services: Services) -> Starlette:
    """The ASGI application."""
    app = Starlette(routes=ROUTES, exception_handlers=HANDLERS, middleware=[Middleware(RequestIds)])
    app.state.services = services
    return app
