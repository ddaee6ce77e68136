"""The routes of all modules, and the application with its middleware."""

from functools import cache

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp

from api import anchors, docs, health, job_commands, job_stream, jobs, log_feed, models, projections, schemas
from api.access import ANY_SCOPE, NO_SCOPES, AuthenticationMiddleware
from api.admission_gate import AdmissionGate
from api.compat import openai
from api.errors import EXCEPTION_HANDLERS
from api.health import HealthSources
from api.hosts import AllowedHosts, HostCheckMiddleware
from api.metrics import count_response
from api.middleware import CompressionMiddleware, RequestMiddleware
from api.openapi import service as described
from api.openapi.document import encode_document
from api.responses import json_response
from api.routing import ApiRoute, get
from api.services import Services

_CORS_EXPOSED_HEADERS = [
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "X-Job-Id",
    "X-Request-Id",
]


async def get_service_name(_request: Request, _services: Services) -> Response:
    """GET /v1/: the service's name."""
    return json_response(schemas.Service())


async def get_openapi_document(_request: Request) -> Response:
    """GET /openapi.json."""
    return Response(_encoded_openapi_document(), media_type="application/json")


@cache
def _encoded_openapi_document() -> bytes:
    return encode_document(ROUTES)


ROUTES = [
    get("/v1/", get_service_name, ANY_SCOPE, described.GET_SERVICE),
    *jobs.ROUTES,
    *job_commands.ROUTES,
    *job_stream.ROUTES,
    *log_feed.ROUTES,
    *anchors.ROUTES,
    *projections.ROUTES,
    *models.ROUTES,
    *health.ROUTES,
    *docs.ROUTES,
    ApiRoute("GET", "/openapi.json", get_openapi_document, NO_SCOPES, described.GET_OPENAPI),
]


def build_api_app(services: Services, process_health: HealthSources) -> ASGIApp:
    """The ASGI application of the API."""
    starlette = Starlette(
        routes=[
            *ROUTES,
            *(openai.ROUTES if services.config.compat else ()),
            Mount("/docs/assets", docs.swagger_ui_assets()),
        ],
        middleware=[Middleware(AuthenticationMiddleware, services=services)],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    starlette.state.services = services
    starlette.state.health = process_health
    app: ASGIApp = CompressionMiddleware(starlette)
    if services.config.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=services.config.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_CORS_EXPOSED_HEADERS,
        )
    return _add_outer_middleware(AdmissionGate(app, services), services.config.hosts)


def build_health_app(process_health: HealthSources, hosts: AllowedHosts) -> ASGIApp:
    """The ASGI application of a role without an API: health and metrics only."""
    starlette = Starlette(routes=health.ROUTES, exception_handlers=EXCEPTION_HANDLERS)
    starlette.state.health = process_health
    return _add_outer_middleware(starlette, hosts)


def _add_outer_middleware(app: ASGIApp, hosts: AllowedHosts) -> ASGIApp:
    # Outermost: responses of all other layers, 500 included, are counted and get the request's id.
    return RequestMiddleware(HostCheckMiddleware(app, hosts), count_response)
