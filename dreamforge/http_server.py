"""The HTTP server that all roles use, and the sockets for it."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator
from functools import partial

import structlog
import uvicorn
from starlette.types import ASGIApp

from dreamforge.http_protocol import HEAD_S, Connection

# How long a client may leave what it was sent unread: uvicorn closes a connection only when its buffer is empty, so one
# that never reads would stay open without limit.
_UNREAD_MS = 30_000
# How long a connection may stay without a request: longer than the clients and proxies that keep connections do (httpx
# 5 s, load balancers 60 s), so that they are the ones to close. uvicorn's 5 s would race with httpx's.
_IDLE_S = 75
_log = structlog.get_logger(__name__)


class Server(uvicorn.Server):
    """Serves one application. Leaves signals to the process, which stops all its roles in order.

    head_s: how long a client may take for a request's head. idle_s: how long a connection may stay without one.
    """

    def __init__(self, app: ASGIApp, *, head_s: float = HEAD_S, idle_s: int = _IDLE_S) -> None:
        config = uvicorn.Config(
            app,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=idle_s,
            timeout_graceful_shutdown=3,
        )
        config.load()
        config.http_protocol_class = partial(Connection, head_s=head_s)  # type: ignore[assignment]  # is only called
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; 0 is any free port. OSError if that can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: only then does asyncio turn Nagle's algorithm off for the sockets that are accepted.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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


def listen_all(host: str, port: int) -> list[socket.socket]:
    """The same; for `localhost` on both of its addresses, of which clients take either. All have the same port."""
    if host != "localhost":
        return [listen(host, port)]
    bound = listen("127.0.0.1", port)
    try:
        return [bound, listen("::1", bound.getsockname()[1])]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # whoever has it would be taken for this service
            bound.close()
            raise
        _log.warning("this machine has no ::1: localhost is 127.0.0.1 alone", reason=str(error))
        return [bound]


def listen_nearby(host: str, port: int) -> list[socket.socket]:
    """The same on a free port where this one is taken: any number of a role's processes run on one machine."""
    try:
        return listen_all(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    bound = listen_all(host, 0)
    _log.warning("port is taken, using a free one", host=host, port=port, used=bound[0].getsockname()[1])
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
