"""The allowed values of the Host header, against DNS rebinding.

A page whose name resolves to the service's address has the service's origin for a browser. The browser sends that name
as Host, so unknown names are rejected. Addresses are allowed: such a page always has a name.
"""

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import errors
from api.errors import ApiError
from api.middleware import find_header

_HOST_HEADER_PATTERN = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(?::\d*)?")

_LOOPBACK_NAMES = {"localhost", "localhost.localdomain", "localhost6", "ip6-localhost", "ip6-loopback"}
"""The local names in /etc/hosts of Debian and Fedora; no page can have one of them."""


class AllowedHosts:
    """The hosts that are served: addresses, this machine's local names, and the configured names.

    names: like `forge.example.org`; `*.example.org` stands for all names below, `*` for all. None: all hosts.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = None if names is None else {name.lower() for name in names}

    def allows(self, host_header: str) -> bool:
        """Whether a request with this Host is answered."""
        if self._names is None or "*" in self._names or not host_header:
            return True
        match = _HOST_HEADER_PATTERN.fullmatch(host_header)
        if match is None:
            return False
        host = match["host"].lower().removesuffix(".")
        if _is_ip_address(host.strip("[]")) or host in _LOOPBACK_NAMES or host.endswith(".localhost"):
            return True
        labels = host.split(".")
        above = {f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels))}
        return host in self._names or not above.isdisjoint(self._names)


class HostCheckMiddleware:
    """Middleware: answers 421 to requests for other hosts. Requests without Host, as HTTP/1.0 allows, are served."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = app
        self._allows = lru_cache(maxsize=256)(hosts.allows)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            host = find_header(scope, b"host") or ""
            if not self._allows(host):
                rejection = ApiError(
                    "misdirected_request",
                    f"This service does not answer for {host[:200]!r}; name it in DF_ALLOWED_HOSTS if it should.",
                    {"field": "Host"},
                )
                await errors.error_response(Request(scope), rejection)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
