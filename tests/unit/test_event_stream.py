"""What every stream has in common: how its frames are sent, and its end with the server's."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import httpx
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.access import ANONYMOUS_CALLER
from api.admission import AdmissionControl, AdmissionLimits
from api.event_stream import StreamEndpoint, join_frames
from api.services import ApiConfig, OpenStreamLimiter, Services


@given(st.lists(st.integers(1, 100_000), max_size=20))
def test_pieces_are_the_frames_in_their_order(sizes: list[int]) -> None:
    """Whole frames, none left out or repeated, and as few pieces as 64 KiB to each allow."""
    told = [bytes([number]) * size for number, size in enumerate(sizes)]
    sent = list(join_frames(told))
    assert b"".join(sent) == b"".join(told)
    assert all(len(piece) >= 1 << 16 for piece in sent[:-1])
    assert all(len(piece) < (1 << 16) + 100_000 for piece in sent)


async def test_who_was_not_let_in_before_the_stop_is_told_to_come_back() -> None:
    """Given a stream that is still being opened when the server stops, then it answers 200 and `retry:` at once.

    An EventSource that gets anything else, such as the server's own 500, would give up for good.
    """
    opening, stopping = asyncio.Event(), asyncio.Event()

    async def opens(_request: Request, _services: Services) -> Response:
        opening.set()
        await asyncio.Event().wait()
        return Response()

    admission = AdmissionControl(cast("Any", None), AdmissionLimits())
    services = SimpleNamespace(
        config=ApiConfig(), keys=None, admission=admission, stopping=stopping, open_streams=OpenStreamLimiter()
    )
    starlette = Starlette(routes=[Route("/", StreamEndpoint("job", opens))])
    starlette.state.services = services

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"caller": ANONYMOUS_CALLER}
        await starlette(scope, receive, send)

    transport = httpx.ASGITransport(app=cast("Any", app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client, asyncio.timeout(20):
        asking = asyncio.create_task(client.get("/"))
        await opening.wait()
        stopping.set()
        answer = await asking
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.text.startswith("retry: ")
