"""A page that shows the OpenAPI document. Its files come from a package, so it works without a network."""

from base64 import b64encode
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from api.access import PUBLIC
from api.openapi.service import GET_DOCS, GET_HOME
from api.routing import ApiRoute

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
# Scripts: the page's own files and this one line. Swagger UI sets inline styles.
_POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{b64encode(sha256(_START.encode()).digest()).decode()}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


async def home(_request: Request) -> Response:
    """GET /: to the page."""
    return RedirectResponse("/docs")


async def page(_request: Request) -> Response:
    """GET /docs."""
    return HTMLResponse(_PAGE % _START, headers={"Content-Security-Policy": _POLICY})


def assets() -> StaticFiles:
    """Swagger UI's files. Their package is not imported, since it would import Flask."""
    package = find_spec("flask_swagger_ui")
    if package is None or package.origin is None:
        raise RuntimeError("the package flask-swagger-ui is missing; install dream-forge with its dependencies")
    return StaticFiles(directory=Path(package.origin).parent / "dist")


ROUTES = [
    ApiRoute("GET", "/", home, PUBLIC, GET_HOME),
    ApiRoute("GET", "/docs", page, PUBLIC, GET_DOCS),
]
