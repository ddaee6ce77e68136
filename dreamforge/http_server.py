"""The HTTP server that all roles use, and the sockets for it."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

# How long a client may leave what it was sent unread: uvicorn closes a connection only when its buffer is empty, so one
# that never reads would stay for ever.
_UNREAD_MS = 30_000
# How long a client may take for a request's head: uvicorn waits for ever for one that trickles in, or never comes.
_HEAD_S = 30.0
_log = structlog.get_logger(__name__)


class Server(uvicorn.Server):
    """Serves one application. Leaves signals to the process, which stops all its roles in order.

    head_s: how long a client may take for a request's head.
    """

    def __init__(self, app: ASGIApp, *, head_s: float = _HEAD_S) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=3
        )
        config.load()
        config.http_protocol_class = _hurrying(config.http_protocol_class, head_s)
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _hurrying(protocol: Any, head_s: float) -> Any:  # noqa: C901  # a class of six short methods
    """The protocol of either of uvicorn's parsers, with a bound on how long a request's head may take.

    That of a connection's first request counts from the opening. Between two requests uvicorn has a bound of its own.
    """

    class Hurrying(protocol):  # type: ignore[misc]  # which of the two is decided at runtime
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()
            elif self._late is None:
                self._late = self.loop.call_later(head_s, self._give_up)

        def _unwatch(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _give_up(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Hurrying


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; 0 is any free port. OSError if that can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; the sockets that are accepted inherit it
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
    try:
        bound.bind((host, port))
        bound.listen(2048)  # from here on connections wait for the server rather than fail
    except OSError:
        bound.close()
        raise
    return bound


def listen_nearby(host: str, port: int) -> socket.socket:
    """The same on a free port where this one is taken: any number of a role's processes run on one machine."""
    try:
        return listen(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    bound = listen(host, 0)
    _log.warning("port is taken, using a free one", host=host, port=port, used=bound.getsockname()[1])
    return bound


def is_loopback(host: str) -> bool:
    """Does an address, or a name, lead to this machine alone?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(bound: socket.socket) -> str:
    """Where clients find what listens there."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
