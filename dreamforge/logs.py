"""Logging: one line per event on stderr, as JSON unless stderr is a terminal.

structlog and the standard library (uvicorn, boto3) use the same processors. The last one before the renderer redacts
secrets, access tokens and prompts. structlog writes its lines itself: by way of the standard library a line costs
several times as much.
"""

import contextlib
import functools
import logging
import re
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

_SECRET_KEY_PATTERN = re.compile(
    r"(.*_)?(password|secret|secret_key|access_key|api_key|token|authorization|db_url|db_listen_url|private|prompt)",
    re.IGNORECASE,
)
_SECRET_TEXT_PATTERN = re.compile(
    r"(?P<before>(?:access_token|X-Amz-Signature|X-Amz-Credential)=|\bdf_[0-9a-f]{32}_|://[^:/?#\s@]*:(?=[^/?#\s@]+@))[^&@\s\"'<>]+",
    re.IGNORECASE,
)
_SECRET_TEXT_MARKS = ("=", "_", "://")
"""A text without any of them can't match the pattern, which takes long to find that out."""
_REDACTED = "***"

# Below WARNING, these log every request with its headers; uvicorn logs each start and stop, which the roles log too.
_VERBOSE_LOGGERS = ("asyncio", "boto3", "botocore", "httpcore", "httpx", "PIL", "s3transfer", "urllib3", "uvicorn")


def configure_logging(level: str = "info", log_format: str = "auto", stream: TextIO | None = None) -> None:
    """Send every log line of the process to `stream` (stderr). A second call replaces the configuration.

    `level` and `log_format` are those of `DF_LOG_LEVEL` and `DF_LOG_FORMAT`.
    """
    target = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    ]
    rendering: list[Processor] = [
        # As plain text, so that it is redacted: the console renderer's tracebacks print local variables.
        structlog.processors.format_exc_info,
        redact_event,
        _choose_renderer(log_format, target),
    ]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda name=None: _NamedLogger(target, name),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=threshold, force=True)
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


class _NamedLogger(structlog.WriteLogger):
    """Writes lines; a log that can't be written stops nobody, as in the standard library. name: of who logs."""

    def __init__(self, file: TextIO, name: str | None) -> None:
        super().__init__(file)
        self.name = name

    def msg(self, message: str) -> None:
        """Write a line."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            super().msg(message)

    debug = info = warning = error = critical = msg


def redact_event(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """A log event without secrets, tokens and prompts, at any depth."""
    return {key: _REDACTED if _is_secret_key(key) else _redact_value(value) for key, value in event.items()}


@functools.lru_cache(maxsize=1024)
def _is_secret_key(key: str) -> bool:
    return _SECRET_KEY_PATTERN.fullmatch(key) is not None


def _redact_value(value: Any) -> Any:
    match value:
        case str():
            if not any(mark in value for mark in _SECRET_TEXT_MARKS):
                return value
            return _SECRET_TEXT_PATTERN.sub(rf"\g<before>{_REDACTED}", value)
        case dict():
            return {
                key: _REDACTED if isinstance(key, str) and _is_secret_key(key) else _redact_value(inner)
                for key, inner in value.items()
            }
        case list() | tuple():
            return [_redact_value(inner) for inner in value]
        case BaseException():
            return _redact_value(f"{type(value).__name__}: {value}")
        case _:
            return value


def _choose_renderer(log_format: str, stream: TextIO) -> Processor:
    if log_format == "json" or (log_format == "auto" and not stream.isatty()):
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=stream.isatty(), timestamp_key="ts")
