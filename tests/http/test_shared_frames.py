"""What the subscribers of a job share: its frames are encoded once for all of them."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from uuid import UUID

import pytest

from api import frames
from api.job_stream import follow_job
from api.services import Services
from tests.http.conftest import Scribe, succeeded
from tests.http.test_slow_client import services_on
from tests.http.test_stream import ids
from tests.kit import parse_sse

SUBSCRIBERS = 20


async def test_frames_are_encoded_once_for_all_subscribers(
    lone_url: str, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given 20 subscribers of one job, when it grows, then each gets all of it, and each event is encoded once."""
    counts: Counter[str] = Counter()
    _count(monkeypatch, frames, "common_line_fields", counts)
    _count(monkeypatch, frames, "progress_frame", counts)
    history = succeeded(count=2)
    whole, history.events = history.events, history.events[:1]
    job_id = UUID(await scribe.write(history))
    frames.job_event_frame.cache_clear()
    async with services_on(lone_url) as services, asyncio.timeout(30):
        streams = [_stream(services, job_id) for _ in range(SUBSCRIBERS)]
        begun = await asyncio.gather(*map(anext, streams))
        reading = asyncio.gather(*map(_read, streams))
        for version in range(2, len(whole) + 1):
            history.events = whole[:version]
            await scribe.write(history, after=version - 1)
        ends = await reading
    for begin, end in zip(begun, ends, strict=True):
        assert ids(parse_sse((begin + end).decode())) == list(range(1, len(whole) + 1))
    assert counts["common_line_fields"] == len(whole)
    assert 0 < counts["progress_frame"] <= len(whole)


def _stream(services: Services, job_id: UUID) -> AsyncGenerator[bytes, None]:
    return follow_job(services, job_id, 0, separate_steps=False)


async def _read(stream: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([chunk async for chunk in stream])


def _count(monkeypatch: pytest.MonkeyPatch, module: object, name: str, counts: Counter[str]) -> None:
    """Count the calls of a function."""
    function: Callable[..., object] = getattr(module, name)

    def counted(*args: object) -> object:
        counts[name] += 1
        return function(*args)

    monkeypatch.setattr(module, name, counted)
