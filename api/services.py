"""What the handlers work with, given by the composition root."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from eventstore.committer import Committer
from eventstore.log import Log
from eventstore.tailer import Tailer
from projections.progress import EVEN, Weights
from projections.queries import Queries

Presign = Callable[[Sequence[str], int], Awaitable[list[str]]]
"""Object keys and a validity in seconds to presigned URLs."""

Check = Callable[[], Awaitable[None]]
"""Raises, with a sentence that says why, if what it checks is down."""


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set. Times in seconds, sizes in bytes."""

    create_status: int = 202
    max_body_bytes: int = 1 << 20
    max_pixels: int = 64_000_000
    presign_expires_s: int = 3600
    sse_heartbeat_s: float = 15.0
    slow_client_s: float = 30.0
    commit_timeout_s: float = 10.0
    weights: Weights = msgspec.field(default_factory=lambda: EVEN)


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """The doors to the floors below. stopping: set when streams must end, since the server goes away."""

    log: Log
    committer: Committer
    tailer: Tailer
    queries: Queries
    presign: Presign
    checks: Mapping[str, Check]
    config: ApiConfig
    stopping: asyncio.Event
