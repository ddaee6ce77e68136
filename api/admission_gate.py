"""Middleware that refuses new jobs before anything else is done for them, while too many commands wait.

Through all layers a refusal takes several times as long. Under overload there are many, and in the process of
`dreamforge up` they would take the time of the runner.
"""

import time

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import error_response
from api.services import Services

_LOG_INTERVAL_S = 1.0
_PATH = "/v1/jobs"
_DECISIVE_HEADERS = {b"idempotency-key", b"origin"}
"""With a key the job may be there already, and a page of another origin needs CORS headers."""

_log = structlog.get_logger(__name__)


class AdmissionGate:
    """Refuses requests for new jobs. path: its route's template, for the metrics."""

    path = _PATH

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._admission = services.admission
        self._needs_key = services.keys is not None
        self._refused = 0
        self._log_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        error = self._admission.current_refusal() if self._may_be_refused(scope) else None
        if error is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = self
        scope["state"]["refused"] = True
        self._count()
        await error_response(Request(scope), error)(scope, receive, send)

    def _may_be_refused(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST":
            return False
        names = {name for name, _ in scope["headers"]}
        return names.isdisjoint(_DECISIVE_HEADERS) and not (self._needs_key and b"authorization" not in names)

    def _count(self) -> None:
        """Log how many were refused, once a second: a line for each would cost more than the refusal."""
        self._refused += 1
        now = time.monotonic()
        if now >= self._log_at:
            _log.warning("admission is closed", refused=self._refused)
            self._refused, self._log_at = 0, now + _LOG_INTERVAL_S
