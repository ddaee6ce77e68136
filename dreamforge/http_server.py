"""The HTTP server of all roles, and its listening sockets."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator
from functools import partial

import structlog
import uvicorn
from starlette.types import ASGIApp

from dreamforge.http_protocol import HEAD_TIMEOUT_S, HttpConnection

# How long sent data may stay unacknowledged: uvicorn closes a connection only when its buffer is empty, so a client
# that never reads would keep it open without limit.
_TCP_USER_TIMEOUT_MS = 30_000
# How long a connection may be idle: longer than clients and proxies keep idle connections (httpx 5 s, load balancers
# 60 s), so that they close first. uvicorn's default of 5 s would race with httpx.
_IDLE_TIMEOUT_S = 75
_log = structlog.get_logger(__name__)


class HttpServer(uvicorn.Server):
    """Serves one application. It handles no signals: the process stops its roles in order.

    head_timeout_s: the longest time for a request's head. idle_timeout_s: the longest time of an idle connection.
    """

    def __init__(
        self, app: ASGIApp, *, head_timeout_s: float = HEAD_TIMEOUT_S, idle_timeout_s: int = _IDLE_TIMEOUT_S
    ) -> None:
        config = uvicorn.Config(
            app,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=idle_timeout_s,
            timeout_graceful_shutdown=3,
        )
        config.load()
        config.http_protocol_class = partial(HttpConnection, head_timeout_s=head_timeout_s)  # type: ignore[assignment]  # is only called
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def listen_on(host: str, port: int) -> socket.socket:
    """A listening socket. port: 0 is any free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm for accepted sockets only if the protocol is given explicitly.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted sockets inherit it
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _TCP_USER_TIMEOUT_MS)
    try:
        bound.bind((host, port))
        bound.listen(2048)  # from here on, connections wait for the server instead of failing
    except OSError:
        bound.close()
        raise
    return bound


def open_listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Listening sockets: for `localhost` on 127.0.0.1 and ::1, with the same port; else one socket. Raises OSError."""
    if host != "localhost":
        return [listen_on(host, port)]
    bound = listen_on("127.0.0.1", port)
    try:
        return [bound, listen_on("::1", bound.getsockname()[1])]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # clients would take the other process for this service
            bound.close()
            raise
        _log.warning("cannot listen on ::1: localhost is 127.0.0.1 only", reason=str(error))
        return [bound]


def listen_or_use_free_port(host: str, port: int) -> list[socket.socket]:
    """As `open_listening_sockets`, but on a free port if the port is taken: a machine may run a role several times."""
    try:
        return open_listening_sockets(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    bound = open_listening_sockets(host, 0)
    _log.warning("port is taken, using a free one", host=host, port=port, used=bound[0].getsockname()[1])
    return bound


def is_loopback(host: str) -> bool:
    """Whether an address or name is a loopback address, which other machines cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of_socket(listening_socket: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening_socket.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
