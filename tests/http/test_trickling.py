"""Clients that send as slowly as they can."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from api.errors import ApiError
from api.inputs import read_json_body
from dreamforge.http_server import HttpServer, listen_on

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that says ok."""
    del scope, receive
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def connected(head_s: float) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that waits so long for a request's head."""
    bound = listen_on("127.0.0.1", 0)
    server = HttpServer(answers, head_timeout_s=head_s)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    reader, writer = await asyncio.open_connection("127.0.0.1", bound.getsockname()[1])
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        server.should_exit = True
        await serving


async def test_who_never_sends_a_request_is_cut_off() -> None:
    """Given a connection without a byte, then it ends."""
    async with connected(0.2) as (reader, _):
        assert await asyncio.wait_for(reader.read(), 30) == b""


async def test_who_trickles_a_head_is_cut_off() -> None:
    """Given a head that grows byte by byte, then no byte buys more time."""
    async with connected(0.3) as (reader, writer):
        gone = asyncio.create_task(_rest(reader))
        writer.write(HEAD)
        while not gone.done():
            writer.write(b"X")
            await asyncio.sleep(0.05)
        assert await gone == b""


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What is read to the end; a server that closes before it has read all resets the connection."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_who_sends_a_second_head_slowly_is_cut_off_after_the_first_answer() -> None:
    """Given a connection that was good once, then it is held to the same."""
    async with connected(0.3) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        first = await reader.readuntil(b"ok")
        assert b"200 OK" in first
        writer.write(HEAD)
        assert await asyncio.wait_for(reader.read(), 30) == b""


async def test_requests_in_time_are_answered_however_many_there_are() -> None:
    """Given a bound that has long passed since the connection was opened, then a request is answered all the same."""
    async with connected(0.4) as (reader, writer):
        for _ in range(4):
            writer.write(HEAD + b"\r\n")
            assert b"200 OK" in await reader.readuntil(b"ok")
            await asyncio.sleep(0.15)


async def test_who_trickles_a_body_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a body that does not come to its end, then it is a 422 like any other that is wrong."""
    monkeypatch.setattr("api.inputs.BODY_TIMEOUT_S", 0.2)

    async def trickle() -> Message:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": []}, trickle)
    with pytest.raises(ApiError, match=r"did not arrive within 0\.2 s"):
        await read_json_body(request, 1000)
