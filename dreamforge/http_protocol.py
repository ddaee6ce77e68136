"""One HTTP/1.1 connection: uvicorn's httptools protocol, with limits and checks that uvicorn lacks.

    head       limited in time and bytes; only HTTP/1.0 and 1.1, exactly one Host; no bare LF (llhttp)
    Upgrade    ignored (RFC 9110, section 7.8): the request, with its body, is served over HTTP/1.1
    trailers   dropped: they are not headers (RFC 9110, section 6.5.1)
    idle       closed after a timeout, but never while the socket has an unread request

This module checks a request's head; `api` checks its content.
"""

import asyncio
import select
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_TIMEOUT_S = 30.0
"""The longest time for a request's head, in seconds: uvicorn sets no limit."""
MAX_HEAD_BYTES = 64 * 1024
"""The largest head, not counting what one read of the socket returns: httptools sets no limit."""
_HTTP_VERSIONS = {"1.0", "1.1"}
_UPGRADE_HEADERS = {b"upgrade", b"http2-settings"}


class BadRequest(Exception):
    """A head that is rejected with 400. Raised in callbacks of httptools, which turns it into its own error."""


class HttpConnection(HttpToolsProtocol):
    """Serves the requests of one connection. head_timeout_s: the longest time for a request's head, in seconds.

    For the first request, the time starts when the connection opens.
    """

    def __init__(self, *args: Any, head_timeout_s: float = HEAD_TIMEOUT_S, **more: Any) -> None:
        super().__init__(*args, **more)
        self.parser = _RequestParser(self)
        self._head_timeout_s = head_timeout_s
        self._timeout_handle: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self._stopping = False

    # The socket

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A client has connected."""
        super().connection_made(_JoiningTransport(transport, self.loop))  # type: ignore[arg-type]  # has what uvicorn uses
        self._start_timeout()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. The parser's callbacks see a header only at its end, so its bytes are counted here."""
        began = self._in_head
        super().data_received(data)
        if began and self._in_head:
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's head is too long.")
        self._start_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has disconnected."""
        self._cancel_timeout()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless the socket has a request that the event loop has not read yet.

        Closing would reset the connection, and the client could not know whether the request was served.
        """
        if not self._has_unread_data():
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """The server stops: close an idle connection; a request that has come already is the last one served."""
        if not self._is_serving_request and self._has_unread_data():
            self._stopping = True
        else:
            super().shutdown()

    def _has_unread_data(self) -> bool:
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # The head

    def on_message_begin(self) -> None:
        """A head begins. Its time starts here; for the first request it has started when the connection opened."""
        super().on_message_begin()
        if self.cycle is not None:
            self._cancel_timeout()
        self._in_head = True
        self._head_bytes = self._unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self._count_head_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is dropped."""
        if self._in_head:
            self._count_head_bytes(len(name) + len(value))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._in_head = False
        version, hosts = self.parser.get_http_version(), sum(name == b"host" for name, _ in self.headers)
        if version not in _HTTP_VERSIONS or hosts > 1 or hosts < (version == "1.1"):
            raise BadRequest
        if self.parser.get_method() == b"CONNECT" or any(
            name == b"transfer-encoding" and value.strip().lower() != b"chunked" for name, value in self.headers
        ):
            raise BadRequest
        if self.parser.should_upgrade():
            return  # the head is parsed again without Upgrade
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The body is complete. httptools also calls this after the head of an upgrade request."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def head_without_upgrade(self) -> bytes:
        """The last head without its upgrade headers."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() not in _UPGRADE_HEADERS]
                lines.append(b"connection: " + b",".join(tokens))
            elif name not in _UPGRADE_HEADERS:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _count_head_bytes(self, size: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise BadRequest

    # Its time

    @property
    def _is_serving_request(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _start_timeout(self) -> None:
        if self._is_serving_request:
            self._cancel_timeout()
        elif self._timeout_handle is None:
            # Between requests it is idle, also while it receives the rest of a body whose response was sent.
            cycle: RequestResponseCycle | None = self.cycle
            idle = cycle is not None and not self._in_head
            self._timeout_handle = self.loop.call_later(
                self.timeout_keep_alive if idle else self._head_timeout_s, self._on_timeout
            )

    def _cancel_timeout(self) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
            self._timeout_handle = None

    def _on_timeout(self) -> None:
        self._timeout_handle = None
        if not self._is_serving_request and (self._in_head or not self._has_unread_data()):
            self.transport.close()


class _JoiningTransport:
    """A transport whose writes within one turn of the event loop go out together.

    uvicorn writes the head and the body of a response one after the other, and uvloop sends each at once: the second
    would be a system call more for the server, and a packet and a wake-up more for the client.
    """

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send some bytes at the end of this turn."""
        if not self._held:
            self._loop.call_soon(self._send_held)
        self._held.append(data)

    def close(self) -> None:
        """Close the connection when everything was sent."""
        self._send_held()
        self._transport.close()

    def _send_held(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(b"".join(held))


class _RequestParser(httptools.HttpRequestParser):
    """A parser that continues after an upgrade request: httptools treats the following bytes as another protocol.

    Java's HttpClient offers h2c with its first request to every http:// origin, also with a body.
    """

    def __init__(self, connection: HttpConnection) -> None:
        super().__init__(connection)
        # As in uvicorn: data after a request that closes the connection is no error.
        self.set_dangerous_leniencies(lenient_data_after_close=True)
        self._connection = connection

    def feed_data(self, data: Any) -> None:
        """Parse some bytes."""
        while data:
            try:
                super().feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._connection.head_without_upgrade() + bytes(data[upgrade.args[0] :])
            else:
                return
