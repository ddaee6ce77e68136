"""The dependencies of the handlers. The composition root creates them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from api.admission import AdmissionControl
from api.hosts import AllowedHosts
from api.job_feed import JobFeeds
from api.metrics import OPEN_SSE_STREAMS
from api.stream_tokens import StreamTokens
from artifacts.stored_object import StoredObject
from eventstore.committer import Committer
from eventstore.integrity.reader import AuditReader
from eventstore.log import Log
from eventstore.tailer import Tailer
from model_registry.catalogue import ModelCatalogue
from orchestrator.service import JobService
from projections.key_queries import ApiKeys
from projections.progress import StepWeights
from projections.queries import JobQueries


class PresignUrls(Protocol):
    """Makes presigned URLs, for GET or for HEAD, from object keys and a validity in seconds."""

    def __call__(self, keys: Sequence[str], expires_s: int, /, *, head: bool = False) -> Awaitable[list[str]]:
        """Presign."""
        ...


ReadObject = Callable[[str, StoredObject], Awaitable[bytes]]
"""Reads an object by its key, which must have this size and hash."""

HealthCheck = Callable[[], Coroutine[Any, Any, None]]
"""Raises if what it checks is down; the message gives the reason."""


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the API. Times in seconds, sizes in bytes.

    eager_s: how long every POST waits for its job's end. patience_s: how long a request waits for the database.
    compat: whether the APIs of other services are served.
    """

    create_status: int = 202
    eager_s: float | None = None
    max_body_bytes: int = 1 << 20
    max_pixels: int = 64_000_000
    presign_expires_s: int = 3600
    logs_tail_default: int = 500
    logs_tail_max: int = 2000
    cors_origins: tuple[str, ...] = ()
    hosts: AllowedHosts = msgspec.field(default_factory=AllowedHosts)
    max_streams: int = 10_000
    stream_max_s: float | None = None
    sse_heartbeat_s: float = 15.0
    slow_client_s: float = 30.0
    patience_s: float = 10.0
    weights: StepWeights | None = None
    compat: bool = True


class OpenStreamLimiter:
    """Counts the live streams that a process serves."""

    def __init__(self) -> None:
        self._count = 0

    @contextmanager
    def occupy_slot(self, kind: str, max_streams: int) -> Iterator[bool]:
        """Occupy one of `max_streams` slots during the block; yields False if none is free."""
        if self._count >= max_streams:
            yield False
            return
        self._count += 1
        try:
            with OPEN_SSE_STREAMS.labels(kind).track_inprogress():
                yield True
        finally:
            self._count -= 1


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """What the handlers use of the lower layers.

    keys: None if requests need no API key. stopping: set when the process stops and streams must end.
    """

    log: Log
    reader: AuditReader
    committer: Committer
    jobs: JobService
    tailer: Tailer
    queries: JobQueries
    models: ModelCatalogue
    keys: ApiKeys | None
    tokens: StreamTokens
    admission: AdmissionControl
    presign: PresignUrls
    read_object: ReadObject
    config: ApiConfig
    stopping: asyncio.Event
    open_streams: OpenStreamLimiter = msgspec.field(default_factory=OpenStreamLimiter)
    feeds: JobFeeds = msgspec.field(default_factory=JobFeeds)
