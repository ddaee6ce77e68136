"""Authentication and authorisation.

    request ─▶ API key or stream token ─▶ the caller: a tenant and its scopes ─▶ scopes of the route ─▶ handler
               401                                                               403

A request reaches only things of the caller's tenant. Everything else is answered with 404.
"""

import re
from typing import get_args
from uuid import UUID

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from api import errors, frames
from api.compat.openai_errors import is_openai_path
from api.errors import ApiError
from api.middleware import find_header
from api.services import Services
from eventstore.errors import EventStoreError
from eventstore.log import DEFAULT_TENANT
from orchestrator.events import Scope

Scopes = tuple[Scope, ...]

NO_SCOPES: Scopes = ()
ANY_SCOPE: Scopes = get_args(Scope)
READ_SCOPES: Scopes = ("jobs", "audit")
WRITE_SCOPES: Scopes = ("jobs",)
AUDIT_SCOPES: Scopes = ("audit",)
ADMIN_SCOPES: Scopes = ("admin",)

_BEARER_CHALLENGE = 'Bearer realm="Dream Forge"'
_STREAM_PATH_SUFFIX = "/stream"
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_JOB_STREAM_PATH = re.compile(r"/v1/jobs/([^/]+)/progress/stream")


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The sender of a request. key_id: of its API key; None where the service requires none."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: UUID | None = None


ANONYMOUS_CALLER = Caller(tenant=DEFAULT_TENANT, scopes=frozenset(ANY_SCOPE))
"""The caller of every request where the service requires no keys."""


def caller_of(request: Request) -> Caller:
    """The caller of a request."""
    found: Caller = request.state.caller
    return found


async def is_key_still_valid(services: Services, authenticated: Caller) -> bool:
    """Whether an authenticated caller's key is still valid; always true where no keys are required."""
    if services.keys is None or authenticated.key_id is None:
        return True
    return await services.keys.active_key(authenticated.key_id) is not None


class AuthenticationMiddleware:
    """Middleware: finds the caller of each request to /v1 and /openai/v1, and applies the tenant's request rate."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        app: ASGIApp | None = None
        if scope["type"] == "http" and _needs_caller(scope["path"]):
            app = await self._rejection_response(scope)
        await (app or self._app)(scope, receive, send)

    async def _rejection_response(self, scope: Connection) -> Response | None:
        """The response to a request that is rejected; None if it may go on."""
        streams = scope["path"].endswith(_STREAM_PATH_SUFFIX)
        try:
            found = scope["state"]["caller"] = await self._authenticate(scope)
            if not streams:  # `StreamEndpoint` counts requests for streams and answers them in its own way
                self._services.admission.count_request(found.tenant)
        except ApiError as error:
            return errors.error_response(Request(scope), error)
        except EventStoreError as error:
            response = await errors.handle_store_error(Request(scope), error)
            # An EventSource stops for good at any status but 200.
            return Response(frames.reconnect_later_content(), media_type="text/event-stream") if streams else response
        return None

    async def _authenticate(self, scope: Connection) -> Caller:
        keys = self._services.keys
        if keys is None:
            self._reject_cross_origin(scope)
            return ANONYMOUS_CALLER
        given = Headers(scope=scope).getlist("authorization")
        if not given:
            return await self._authenticate_by_stream_token(scope)
        kind, _, text = given[0].partition(" ")
        key = await keys.authenticate(text.strip()) if kind.lower() == "bearer" and len(given) == 1 else None
        if key is None:
            raise _unauthorized_error("This API key is unknown or was revoked.")
        return Caller(tenant=key.tenant, scopes=key.scopes, key_id=key.key_id)

    def _reject_cross_origin(self, scope: Connection) -> None:
        """Reject unsafe requests from pages of other origins: without keys, any web page could post to a local service.

        Browsers send the page's origin with such requests; other clients send none (Fetch Standard, section 3.2).
        """
        origin = find_header(scope, b"origin")
        allowed = self._services.config.cors_origins
        if scope["method"] in _SAFE_METHODS or origin is None or not {origin, "*"}.isdisjoint(allowed):
            return
        if origin not in {f"{kind}://{find_header(scope, b'host')}" for kind in ("http", "https")}:
            raise ApiError(
                "forbidden",
                f"Pages of {origin} may change nothing here; name that origin in DF_CORS_ORIGINS if they should.",
                {"field": "Origin"},
            )

    async def _authenticate_by_stream_token(self, scope: Connection) -> Caller:
        """The caller of a job's stream by its token. A browser's EventSource can't send an Authorization header."""
        path = _JOB_STREAM_PATH.fullmatch(scope["path"])
        token = QueryParams(scope["query_string"]).get("access_token")
        if path is None or token is None:
            raise _unauthorized_error("An API key is needed: Authorization: Bearer df_….", credentials_given=False)
        claims = await self._services.tokens.verify(token, path[1])
        if claims is None:
            raise _unauthorized_error("This token is not valid for this stream, or has expired.")
        found = Caller(tenant=claims.tenant, scopes=frozenset({"jobs"}), key_id=claims.key_id)
        if claims.key_id is None or not await is_key_still_valid(self._services, found):
            raise _unauthorized_error("There is no API key behind this token, or it was revoked.")
        return found


def _needs_caller(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/") or is_openai_path(path)


class ScopeGuard:
    """Middleware of a route: the caller needs one of its scopes."""

    def __init__(self, app: ASGIApp, scopes: Scopes) -> None:
        self._app = app
        self._scopes = scopes

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Handle one request."""
        found: Caller = scope["state"]["caller"]
        if found.scopes.isdisjoint(self._scopes):
            raise ApiError(
                "forbidden",
                f"This API key lacks the scope {' or '.join(self._scopes)}.",
                {"field": "Authorization", "scopes": list(self._scopes)},
                {"WWW-Authenticate": f'{_BEARER_CHALLENGE}, error="insufficient_scope"'},
            )
        await self._app(scope, receive, send)


def _unauthorized_error(message: str, *, credentials_given: bool = True) -> ApiError:
    # RFC 6750, section 3.1: no error code where no credentials were given.
    challenge = f'{_BEARER_CHALLENGE}, error="invalid_token"' if credentials_given else _BEARER_CHALLENGE
    return ApiError("unauthorized", message, {"field": "Authorization"}, {"WWW-Authenticate": challenge})
