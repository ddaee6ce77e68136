"""The routes, and who may use each."""

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from api import anchors, commands, docs, feed, job_stream, jobs, models, projections, schemas
from api.access import Authentication, Guard
from api.errors import HANDLERS
from api.health import Health, healthz, metrics, readyz
from api.hosts import HostCheck, Hosts
from api.metrics import RequestMetrics
from api.middleware import AcceptedEncoding, RelativeRedirects, RequestIds, SecurityHeaders
from api.operations import OPERATIONS
from api.responses import json_response
from api.services import Services
from api.sse import Endpoint, StreamEndpoint

_GZIP_FROM = 1000
_EXPOSED = ["ETag", "Idempotency-Replayed", "Location", "Preference-Applied", "Retry-After", "X-Request-Id"]


async def service(_request: Request) -> Response:
    """GET /v1/: who answers."""
    return json_response(schemas.Service())


async def _jobs(request: Request) -> Response:
    # One route: of two with the same path, Starlette would name the first one's methods alone in Allow.
    return await (commands.create if request.method == "POST" else jobs.list_jobs)(request)


def _guarded(path: str, endpoint: Any, methods: list[str] | None = None) -> Route:
    """A route for callers with one of the scopes that the table of operations asks for."""
    route = Route(path, endpoint, methods=methods)
    route.app = Guard(route.app, {one.method: one.scopes for one in OPERATIONS if one.path == path})
    return route


def _streaming(path: str, kind: str, opens: Endpoint) -> Route:
    """A route of a stream, which has no HEAD."""
    route = _guarded(path, StreamEndpoint(kind, opens))
    route.methods = {"GET"}
    return route


HEALTH_ROUTES = [
    Route("/healthz", healthz),
    Route("/readyz", readyz),
    Route("/metrics", metrics),
]
ROUTES = [
    _guarded("/v1/", service),
    _guarded("/v1/jobs", _jobs, methods=["GET", "POST"]),
    _guarded("/v1/jobs/{job_id}", jobs.show),
    _guarded("/v1/jobs/{job_id}/artifacts", jobs.artifacts),
    _guarded("/v1/jobs/{job_id}/artifacts/{artifact_id}/content", jobs.content),
    _guarded("/v1/jobs/{job_id}/cancel", commands.cancel, methods=["POST"]),
    _guarded("/v1/jobs/{job_id}/progress", jobs.progress),
    _streaming("/v1/jobs/{job_id}/progress/stream", "job", job_stream.stream),
    _guarded("/v1/jobs/{job_id}/events", jobs.events),
    _guarded("/v1/jobs/{job_id}/logs", jobs.logs),
    _guarded("/v1/jobs/{job_id}/retry", commands.retry, methods=["POST"]),
    _guarded("/v1/jobs/{job_id}/stream_token", commands.stream_token, methods=["POST"]),
    _guarded("/v1/events", feed.page),
    _streaming("/v1/events/stream", "log", feed.stream),
    _guarded("/v1/anchors", anchors.list_anchors),
    _guarded("/v1/projections", projections.list_projections),
    _guarded("/v1/models", models.list_models),
    _guarded("/v1/models/{model_id}", models.show),
    *HEALTH_ROUTES,
    Route("/", docs.home),
    Route("/openapi.json", docs.document),
    Route("/docs", docs.page),
]


def build(services: Services, health: Health) -> ASGIApp:
    """The ASGI application."""
    starlette = Starlette(
        routes=[*ROUTES, Mount("/docs/assets", docs.assets())],
        middleware=[Middleware(Authentication, services=services)],
        exception_handlers=HANDLERS,
    )
    starlette.state.services = services
    starlette.state.health = health
    app: ASGIApp = AcceptedEncoding(GZipMiddleware(starlette, minimum_size=_GZIP_FROM))
    if services.config.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=services.config.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    return _observed(app, services.config.hosts)


def build_health(health: Health, hosts: Hosts) -> ASGIApp:
    """The application of a role that serves nothing else."""
    starlette = Starlette(routes=HEALTH_ROUTES, exception_handlers=HANDLERS)
    starlette.state.health = health
    return _observed(starlette, hosts)


def _observed(app: ASGIApp, hosts: Hosts) -> ASGIApp:
    # Around everything: an answer of 500, too, is counted, and must carry its request's id.
    return RequestIds(SecurityHeaders(RequestMetrics(HostCheck(RelativeRedirects(app), hosts))))
