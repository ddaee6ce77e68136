"""Routes: each is one method of a path, with the scopes that it requires and its OpenAPI description."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.access import Guard
from api.openapi.vocabulary import Operation
from api.services import Services
from orchestrator.events.keys import Scope

Handler = Callable[[Request, Services], Coroutine[Any, Any, Response]]


class ApiRoute(Route):
    """A route of the API.

    endpoint: a function of the request, or an ASGI application. scopes: the caller needs one of them; without scopes
    the route requires no API key. head: whether GET includes HEAD.
    """

    def __init__(
        self,
        method: Literal["GET", "POST"],
        path: str,
        endpoint: Callable[..., Any],
        operation: Operation,
        scopes: tuple[Scope, ...] = (),
        *,
        head: bool = True,
    ) -> None:
        guard = [Middleware(Guard, scopes=scopes)] if scopes else []
        super().__init__(path, endpoint, methods=[method], middleware=guard)
        if not head:
            self.methods = {method}
        self.method = method
        self.operation = operation
        self.scopes = scopes


def get(path: str, handler: Handler, scopes: tuple[Scope, ...], operation: Operation) -> ApiRoute:
    """A route for GET and HEAD."""
    return ApiRoute("GET", path, _with_services(handler), operation, scopes)


def post(path: str, handler: Handler, scopes: tuple[Scope, ...], operation: Operation) -> ApiRoute:
    """A route for POST."""
    return ApiRoute("POST", path, _with_services(handler), operation, scopes)


def _with_services(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await handler(request, request.app.state.services)

    return endpoint
