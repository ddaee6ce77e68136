"""Who asks, and what may be asked for.

    request ─▶ a key, or a stream's token ─▶ the caller: a tenant and its scopes ─▶ may it? ─▶ the handler
               401                                                                  403

A tenant's requests see that tenant's things alone; everything else is not there: 404.
"""

import re
from collections.abc import Collection, Mapping
from typing import get_args
from uuid import UUID

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from api import errors, frames
from api.errors import ApiError
from api.services import Services
from eventstore.errors import EventStoreError
from eventstore.log import DEFAULT_TENANT
from orchestrator.events.keys import Scope

_CHALLENGE = 'Bearer realm="Dream Forge"'
_STREAM = "/stream"
_READS = {"GET", "HEAD", "OPTIONS"}
_TOKEN_PATH = re.compile(r"/v1/jobs/([^/]+)/progress/stream")


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever sent a request. key_id: of the key that it bore, None where none is asked for."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: UUID | None = None


EVERYBODY = Caller(tenant=DEFAULT_TENANT, scopes=frozenset(get_args(Scope)))
"""The caller of every request where no keys are asked for."""


def caller(request: Request) -> Caller:
    """The caller of a request."""
    found: Caller = request.state.caller
    return found


async def key_active(services: Services, asker: Caller) -> bool:
    """Does the key of a caller, who was let in, still open anything? Where no keys are asked for, always."""
    if services.keys is None or asker.key_id is None:
        return True
    return await services.keys.active(asker.key_id) is not None


class Authentication:
    """Finds out who sends each request to /v1, and counts it against the tenant's rate."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Run one request, if its sender is known."""
        if scope["type"] == "http" and (scope["path"] == "/v1" or scope["path"].startswith("/v1/")):
            try:
                scope["state"]["caller"] = await self._caller(scope)
                self._pace(scope)
            except ApiError as error:
                await errors.respond(Request(scope), error)(scope, receive, send)
                return
            except EventStoreError as error:
                response = await errors.on_store_error(Request(scope), error)
                if scope["path"].endswith(_STREAM):  # on which any status but 200 makes an EventSource give up
                    response = Response(frames.come_back(), media_type="text/event-stream")
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _caller(self, scope: Connection) -> Caller:
        keys = self._services.keys
        headers = Headers(scope=scope)
        if keys is None:
            self._refuse_strange_pages(scope, headers)
            return EVERYBODY
        given = headers.getlist("authorization")
        if not given:
            return await self._by_token(scope)
        kind, _, text = given[0].partition(" ")
        key = await keys.authenticate(text.strip()) if kind.lower() == "bearer" and len(given) == 1 else None
        if key is None:
            raise _unauthorized("This API key is unknown or was revoked.", given=True)
        return Caller(tenant=key.tenant, scopes=key.scopes, key_id=key.key_id)

    def _refuse_strange_pages(self, scope: Connection, headers: Headers) -> None:
        """Where nothing else is asked for, any page that a browser shows could post to a service on its machine.

        A browser names the page's origin with such a request, and no other client does (Fetch Standard, section 3.2).
        """
        origin = headers.get("origin")
        allowed = self._services.config.cors_origins
        if scope["method"] in _READS or origin is None or not {origin, "*"}.isdisjoint(allowed):
            return
        if origin not in {f"{kind}://{headers.get('host')}" for kind in ("http", "https")}:
            raise ApiError(
                "forbidden",
                f"Pages of {origin} may change nothing here; name that origin in DF_CORS_ORIGINS if they should.",
                {"field": "Origin"},
            )

    async def _by_token(self, scope: Connection) -> Caller:
        """A browser's EventSource can set no headers: it shows a token for the one stream that it reads."""
        path = _TOKEN_PATH.fullmatch(scope["path"])
        token = QueryParams(scope["query_string"]).get("access_token")
        if path is None or token is None:
            raise _unauthorized("An API key is needed: Authorization: Bearer df_….", given=False)
        claims = await self._services.tokens.claims(token, path[1])
        if claims is None:
            raise _unauthorized("This token is not valid for this stream, or has expired.", given=True)
        found = Caller(tenant=claims.tenant, scopes=frozenset({"jobs"}), key_id=claims.key_id)
        if claims.key_id is None or not await key_active(self._services, found):
            raise _unauthorized("There is no API key behind this token, or it was revoked.", given=True)
        return found

    def _pace(self, scope: Connection) -> None:
        if not scope["path"].endswith(_STREAM):  # streams answer too many requests in their own way
            self._services.admission.pace(scope["state"]["caller"].tenant)


class Guard:
    """The endpoint of a route, for callers who have one of the scopes that its method takes."""

    def __init__(self, app: ASGIApp, needs: Mapping[str, Collection[Scope]]) -> None:
        self._app = app
        self._needs = needs

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Run one request, if its caller may send it."""
        found: Caller = scope["state"]["caller"]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        names = list(self._needs[method])
        if found.scopes.isdisjoint(names):
            raise ApiError(
                "forbidden",
                f"This API key lacks the scope {' or '.join(names)}.",
                {"field": "Authorization", "scopes": names},
                {"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope"'},
            )
        await self._app(scope, receive, send)


def _unauthorized(message: str, *, given: bool) -> ApiError:
    # RFC 6750, section 3.1: no error code where no credentials were given.
    challenge = f'{_CHALLENGE}, error="invalid_token"' if given else _CHALLENGE
    return ApiError("unauthorized", message, {"field": "Authorization"}, {"WWW-Authenticate": challenge})
