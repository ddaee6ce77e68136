"""Log lines: one form for all, and nothing in them that nobody may read."""

import io
import logging
from collections.abc import Iterator

import msgspec
import pytest
import structlog

from dreamforge import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the log goes; pytest's own logging is back in place afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield io.StringIO()
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]


def test_structlog_and_the_standard_library_share_one_form(stream: io.StringIO) -> None:
    """Without a terminal that is JSON, one object a line."""
    logs.configure_logging("info", "auto", stream)
    structlog.get_logger("forge").info("started", port=1)
    logging.getLogger("uvicorn.error").warning("%s left", "somebody")
    first, second = lines(stream)
    assert (first["event"], first["level"], first["logger"], first["port"]) == ("started", "info", "forge", 1)
    assert (second["event"], second["level"], second["logger"]) == ("somebody left", "warning", "uvicorn.error")
    assert all(str(line["ts"]).endswith("Z") for line in (first, second))


def test_the_level_holds_and_talkative_libraries_are_quiet(stream: io.StringIO) -> None:
    logs.configure_logging("info", "json", stream)
    structlog.get_logger("forge").debug("too much")
    logging.getLogger("botocore.endpoint").info("a request with its headers")
    assert lines(stream) == []


def test_tracebacks_show_neither_secrets_nor_local_variables(stream: io.StringIO) -> None:
    logs.configure_logging("info", "console", stream)
    prompt = "a private dream"
    try:
        raise ValueError("postgresql://forge:hunter2@db/forge refused")  # noqa: TRY301 - the case
    except ValueError:
        structlog.get_logger("forge").exception("failed")
    text = stream.getvalue()
    assert "postgresql://forge:***@db/forge refused" in text
    assert "hunter2" not in text
    assert prompt not in text


def test_a_log_that_cannot_be_written_stops_nobody(stream: io.StringIO) -> None:
    """Given a full disk, or a reader of the pipe that has gone, then whoever logs goes on."""

    class Full(io.StringIO):
        def write(self, _line: str) -> int:
            raise OSError("no space left on device")

    assert stream.getvalue() == ""
    logs.configure_logging("info", "json", Full())
    structlog.get_logger("forge").info("started")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"prompt": "p", "negative_prompt": "n"}, {"prompt": "***", "negative_prompt": "***"}),
        ({"job": {"params": [{"prompt": "p"}]}}, {"job": {"params": [{"prompt": "***"}]}}),
        ({"s3_secret_key": "k", "authorization": "Bearer k"}, {"s3_secret_key": "***", "authorization": "***"}),
        ({"event": "GET /v1/x?access_token=abc&tail=1"}, {"event": "GET /v1/x?access_token=***&tail=1"}),
        ({"url": "http://s3/k?X-Amz-Signature=1f&x=1"}, {"url": "http://s3/k?X-Amz-Signature=***&x=1"}),
        ({"error": OSError("postgresql://u:pw@h/d")}, {"error": "OSError: postgresql://u:***@h/d"}),
        ({"url": "http://host:9000/a@b", "attempt": 3}, {"url": "http://host:9000/a@b", "attempt": 3}),
    ],
)
def test_redaction(given: dict[str, object], shown: dict[str, object]) -> None:
    assert logs.redact_event(None, "info", given) == shown
