"""The SSE parser: the WHATWG's rules, whatever way the bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.client.sse import EventStreamParser, ServerSentEvent

LINES = st.sampled_from(
    [
        *("", "data: a", "data", "data:", "data:  b", "data: é😀", " data: no", "data : no", "\ufeffdata: no"),
        *("event: log", "event", "id: 7", "id", "id: x\0y", "retry: 40", "retry: -4", ":", ": note", "other: z"),
    ]
)
ENDINGS = st.sampled_from(["\n", "\r", "\r\n"])


def parse(text: str | bytes) -> list[ServerSentEvent]:
    return EventStreamParser().feed(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_each_line_ending_ends_a_line(end: str) -> None:
    assert parse(f"event: log{end}id: 3{end}data: x{end}{end}") == [ServerSentEvent("log", "x", "3")]


def test_the_event_is_called_message_unless_named() -> None:
    assert parse("event: log\ndata: 1\n\ndata: 2\n\nevent:\ndata: 3\n\n") == [
        ServerSentEvent("log", "1", ""),
        ServerSentEvent("message", "2", ""),
        ServerSentEvent("message", "3", ""),
    ]


def test_data_lines_are_joined() -> None:
    assert parse("data: one\ndata:two\ndata\ndata:  four\n\n") == [ServerSentEvent("message", "one\ntwo\n\n four", "")]


def test_a_block_without_data_is_not_dispatched() -> None:
    """Its event name is forgotten too, but its id counts."""
    parser = EventStreamParser()
    assert parser.feed(b"event: log\nid: 5\n\n") == []
    assert parser.last_event_id == "5"
    assert parser.feed(b"data: x\n\n") == [ServerSentEvent("message", "x", "5")]


def test_an_empty_data_line_is_data() -> None:
    assert parse("data\n\n") == [ServerSentEvent("message", "", "")]


def test_the_id_lasts_until_another_comes() -> None:
    assert [message.last_event_id for message in parse("id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n")] == [
        "1",
        "1",
        "",
    ]


def test_an_id_with_nul_is_ignored() -> None:
    assert parse("id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n")[-1].last_event_id == "1"


def test_an_id_of_an_unfinished_block_does_not_count() -> None:
    """A resume from it would skip an event that was never delivered."""
    parser = EventStreamParser("1")
    assert parser.feed(b"id: 2\ndata: x\n") == []
    assert parser.last_event_id == "1"


@pytest.mark.parametrize(("text", "retry_ms"), [("2000", 2000), ("0", 0), ("-1", None), ("1.5", None), ("", None)])
def test_retry_takes_digits_only(text: str, retry_ms: int | None) -> None:
    parser = EventStreamParser()
    parser.feed(f"retry: {text}\n".encode())
    assert parser.retry_ms == retry_ms


def test_retry_takes_ascii_digits_only() -> None:
    parser = EventStreamParser()
    parser.feed("retry: ٣\n".encode())
    assert parser.retry_ms is None


def test_comments_and_unknown_fields_are_ignored() -> None:
    assert parse(": hello\n:\nother: x\ndata: y\n data: z\n\n") == [ServerSentEvent("message", "y", "")]


def test_one_leading_bom_is_ignored() -> None:
    assert parse(b"\xef\xbb\xbfdata: x\n\n") == [ServerSentEvent("message", "x", "")]
    assert parse(b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\n") == []
    later = EventStreamParser()
    assert later.feed(b"data: x\n\n") == [ServerSentEvent("message", "x", "")]
    assert later.feed(b"\xef\xbb\xbfdata: y\n\n") == []


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert parse(b"data: a\xffb\n\n") == [ServerSentEvent("message", "a\ufffdb", "")]


def test_what_is_unfinished_at_the_end_is_not_dispatched() -> None:
    assert parse("data: x\n\ndata: y\n") == [ServerSentEvent("message", "x", "")]


@given(st.lists(st.tuples(LINES, ENDINGS), max_size=30), st.booleans(), st.data())
def test_the_cuts_between_chunks_do_not_matter(
    lines: list[tuple[str, str]],
    bom: bool,  # noqa: FBT001 - drawn by hypothesis
    data: st.DataObject,
) -> None:
    stream = ("\ufeff" * bom + "".join(line + end for line, end in lines)).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    whole, pieces = EventStreamParser(), EventStreamParser()
    messages = [
        message
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for message in pieces.feed(stream[start:stop])
    ]
    assert messages == whole.feed(stream)
    assert (pieces.last_event_id, pieces.retry_ms) == (whole.last_event_id, whole.retry_ms)


@given(st.lists(st.tuples(st.sampled_from(["log", "artifact"]), st.text(max_size=20)), max_size=8))
def test_what_a_server_frames_comes_out_again(events: list[tuple[str, str]]) -> None:
    """Any text without line breaks survives, one byte at a time."""
    frames = [(name, "".join(text.splitlines())) for name, text in events]
    stream = "".join(
        f"event: {name}\ndata: {text}\nid: {version}\n\n" for version, (name, text) in enumerate(frames, start=1)
    )
    parser = EventStreamParser()
    messages = [message for byte in stream.encode("utf-8") for message in parser.feed(bytes([byte]))]
    assert [(message.event, message.data) for message in messages] == frames
    assert [message.last_event_id for message in messages] == [str(n) for n in range(1, len(frames) + 1)]
