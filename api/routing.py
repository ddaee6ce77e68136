"""Routes: each is one method of a path, with the scopes that it requires and its OpenAPI description."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Literal

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.access import ScopeGuard, Scopes
from api.openapi.vocabulary import Operation
from api.services import Services

Method = Literal["GET", "POST"]
Handler = Callable[[Request, Services], Coroutine[Any, Any, Response]]


class ApiRoute(Route):
    """A route of the API.

    endpoint: a function of the request, or an ASGI application. scopes: the caller needs one of them; `NO_SCOPES`
    routes require no API key. head: whether GET includes HEAD.
    """

    def __init__(
        self,
        method: Method,
        path: str,
        endpoint: Callable[..., Any],
        scopes: Scopes,
        operation: Operation,
        *,
        head: bool = True,
    ) -> None:
        guard = [Middleware(ScopeGuard, scopes=scopes)] if scopes else []
        super().__init__(path, endpoint, methods=[method], middleware=guard)
        if not head:
            self.methods = {method}
        self.method = method
        self.operation = operation
        self.scopes = scopes


def _route_with_services(method: Method, path: str, handler: Handler, scopes: Scopes, operation: Operation) -> ApiRoute:
    async def endpoint(request: Request) -> Response:
        return await handler(request, request.app.state.services)

    return ApiRoute(method, path, endpoint, scopes, operation)


get = partial(_route_with_services, "GET")
post = partial(_route_with_services, "POST")
