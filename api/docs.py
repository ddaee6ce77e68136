"""The OpenAPI document as it is served, and a page that shows it.

The page's files come from a package, none from another server, so that it works without a network.
"""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from api import openapi

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Dream Forge</title>
<link rel="icon" href="/docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script>%s</script>
</body>
</html>
"""
_START = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", deepLinking: true, tryItOutEnabled: true, '
    "validatorUrl: null});"
)
# Of scripts, the page's own files and this one line; styles Swagger UI sets everywhere.
_POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{b64encode(sha256(_START.encode()).digest()).decode()}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


async def document(_request: Request) -> Response:
    """GET /openapi.json."""
    return Response(_document(), media_type="application/json")


async def home(_request: Request) -> Response:
    """GET /: what a browser shows of the service."""
    return RedirectResponse("/docs")


async def page(_request: Request) -> Response:
    """GET /docs."""
    return HTMLResponse(_PAGE % _START, headers={"Content-Security-Policy": _POLICY})


def assets() -> StaticFiles:
    """Swagger UI's own files. The package that holds them is found, not imported: it would bring a web framework."""
    package = find_spec("flask_swagger_ui")
    if package is None or package.origin is None:
        raise RuntimeError("the package flask-swagger-ui is missing; install dream-forge with its dependencies")
    return StaticFiles(directory=Path(package.origin).parent / "dist")


@cache
def _document() -> bytes:
    return openapi.encoded()
