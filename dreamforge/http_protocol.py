"""One HTTP/1.1 connection: uvicorn's protocol on httptools, with what uvicorn leaves open closed.

    head       at most so many seconds and bytes; HTTP/1.0 and 1.1 alone, one Host; no bare LF (llhttp)
    Upgrade    ignored (RFC 9110, section 7.8): the request is answered by HTTP/1.1, body and all
    trailers   dropped: they are no headers (RFC 9110, section 6.5.1)
    idle       closed after a while, but never with a request unread in the socket

What a head says is judged here; what a request asks for, in `api`.
"""

import asyncio
import select
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_S = 30.0
"""How long a client may take for a request's head: uvicorn itself sets no limit."""
HEAD_BYTES = 64 * 1024
"""How long a head may be, beside what a read of the socket brings at once: httptools sets no bound."""
_VERSIONS = {"1.0", "1.1"}
_OFFERS = {b"upgrade", b"http2-settings"}


class BadRequest(Exception):
    """A head that is answered with 400. Raised inside httptools, which turns it into an error of its own."""


class Connection(HttpToolsProtocol):
    """Serves the requests of one connection. head_s: how long a client may take for a request's head.

    That of the first request counts from the opening.
    """

    def __init__(self, *args: Any, head_s: float = HEAD_S, **more: Any) -> None:
        super().__init__(*args, **more)
        self.parser = _Parser(self)
        self._head_s = head_s
        self._late: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = 0
        self._unparsed = 0
        self._stopping = False

    # The socket

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A client is there."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Some bytes came. A header that goes on and on is told to the parser's callbacks only at its end."""
        began = self._in_head
        super().data_received(data)
        if began and self._in_head:
            self._unparsed += len(data)
            if self._unparsed > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's head is too long.")
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._unwatch()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless a request has just come that the loop has not read yet.

        Closing would reset the connection under it, and its client could not know whether the request was served.
        """
        if not self._readable():
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """The server stops: close an idle connection; a request that has come already is the last one served."""
        if not self._busy and self._readable():
            self._stopping = True
        else:
            super().shutdown()

    def _readable(self) -> bool:
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # The head

    def on_message_begin(self) -> None:
        """A head begins. Its time counts from here; that of the first from the opening, so that none is given twice."""
        super().on_message_begin()
        if self.cycle is not None:
            self._unwatch()
        self._in_head = True
        self._head_bytes = self._unparsed = 0

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is none."""
        if self._in_head:
            self._grow(len(name) + len(value))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        version, hosts = self.parser.get_http_version(), sum(name == b"host" for name, _ in self.headers)
        if version not in _VERSIONS or hosts > 1 or hosts < (version == "1.1"):
            raise BadRequest
        if self.parser.get_method() == b"CONNECT" or any(
            name == b"transfer-encoding" and value.strip().lower() != b"chunked" for name, value in self.headers
        ):
            raise BadRequest
        if self.parser.should_upgrade():
            return  # comes again without
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The body is whole; after the head of an upgrade httptools says so, whatever follows."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def head_without_upgrade(self) -> bytes:
        """The head that was read last, as a client would have sent it that offers no other protocol."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() not in _OFFERS]
                lines.append(b"connection: " + b",".join(tokens))
            elif name not in _OFFERS:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _grow(self, size: int) -> None:
        self._unparsed = 0
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES:
            raise BadRequest

    # Its time

    @property
    def _busy(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _watch(self) -> None:
        if self._busy:
            self._unwatch()
        elif self._late is None:
            # Between requests it is idle, also while the rest of a body comes whose request is answered already.
            cycle: RequestResponseCycle | None = self.cycle
            idle = cycle is not None and not self._in_head
            self._late = self.loop.call_later(self.timeout_keep_alive if idle else self._head_s, self._give_up)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if not self._busy and (self._in_head or not self._readable()):
            self.transport.close()


class _Parser(httptools.HttpRequestParser):
    """A parser that reads on after the head of an upgrade: httptools takes what follows for another protocol.

    Java's HttpClient offers h2c with its first request to every http:// origin, with whatever body that has.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        # As uvicorn has it: what follows a request that closes the connection is no error.
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
