"""An incremental parser for server-sent events, as in the WHATWG's "Interpreting an event stream".

Pure: takes bytes in chunks of any size, and returns messages. https://html.spec.whatwg.org/multipage/#event-stream
"""

import codecs

import msgspec


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One dispatched event. last_event_id: the newest id of the stream so far."""

    event: str
    data: str
    last_event_id: str


class EventStreamParser:
    """Parses the bytes of one connection. After a reconnect, use a new parser with the last event id.

    received_event: whether this connection has sent anything but comments and `retry:`.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self.received_event = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._line = ""
        self._started = False
        self._after_cr = False
        self._reset(last_event_id)

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The messages that this chunk completes. An incomplete message at the end of the stream is dropped."""
        messages = [self._parse_line(line) for line in self._split_lines(self._decoder.decode(chunk))]
        return [message for message in messages if message is not None]

    def _split_lines(self, text: str) -> list[str]:
        if not text:
            return []
        if not self._started:
            self._started = True
            text = text.removeprefix("\ufeff")
        if self._after_cr:
            # A CRLF was split between two chunks: its LF does not end another line.
            text = text.removeprefix("\n")
            self._after_cr = False
        self._after_cr = text.endswith("\r")
        *complete, self._line = (self._line + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        return complete

    def _parse_line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch_event()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id, self._has_id = value, True
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)
        return None

    def _dispatch_event(self) -> ServerSentEvent | None:
        # A block with only an id dispatches nothing, but moves the cursor.
        self.received_event = self.received_event or bool(self._data) or self._has_id
        self.last_event_id = self._id
        event, data = self._event or "message", self._data
        self._reset(self._id)
        return ServerSentEvent(event, "\n".join(data), self.last_event_id) if data else None

    def _reset(self, last_event_id: str) -> None:
        self._id = last_event_id
        self._has_id = False
        self._event = ""
        self._data: list[str] = []
