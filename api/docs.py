"""A page that shows the OpenAPI document. Its files come from a package, so it works without a network."""

from base64 import b64encode
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from api.access import NO_SCOPES
from api.openapi.service import GET_DOCS, GET_HOME
from api.routing import ApiRoute

_PAGE_HTML = """\
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
_SWAGGER_SCRIPT = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", deepLinking: true, tryItOutEnabled: true, '
    "validatorUrl: null});"
)
# Scripts: the page's own files and this one line. Swagger UI sets inline styles.
_CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{b64encode(sha256(_SWAGGER_SCRIPT.encode()).digest()).decode()}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


async def redirect_home_to_docs(_request: Request) -> Response:
    """GET /: to the page."""
    return RedirectResponse("/docs")


async def docs_page(_request: Request) -> Response:
    """GET /docs."""
    return HTMLResponse(_PAGE_HTML % _SWAGGER_SCRIPT, headers={"Content-Security-Policy": _CONTENT_SECURITY_POLICY})


def swagger_ui_assets() -> StaticFiles:
    """Swagger UI's files. Their package is not imported, since it would import Flask."""
    package = find_spec("flask_swagger_ui")
    if package is None or package.origin is None:
        raise RuntimeError("the package flask-swagger-ui is missing; install dream-forge with its dependencies")
    return StaticFiles(directory=Path(package.origin).parent / "dist")


ROUTES = [
    ApiRoute("GET", "/", redirect_home_to_docs, NO_SCOPES, GET_HOME),
    ApiRoute("GET", "/docs", docs_page, NO_SCOPES, GET_DOCS),
]
