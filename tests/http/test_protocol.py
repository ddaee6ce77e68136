"""Requests as bytes: what is one, where it ends, and how connections are kept."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from dreamforge import process
from dreamforge.http_protocol import HEAD_TIMEOUT_S, MAX_HEAD_BYTES
from dreamforge.http_server import HttpServer, listen_on
from tests.kit import Api, eventually

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\nUpgrade: h2c\r\n"
"""What Java's HttpClient adds to its first request to an http:// origin."""
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
BODIES = {
    "a length": (b"Content-Length: 10\r\n", b'{"a": "b"}'),
    "chunks": (b"Transfer-Encoding: chunked\r\n", b'3\r\n{"a\r\n7\r\n": "b"}\r\n0\r\n\r\n'),
}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that tells what it was asked; of /early before the body is there."""
    request = Request(scope, receive)
    body = "" if request.url.path == "/early" else (await request.body()).decode()
    said = {"method": request.method, "path": request.url.path, "body": body}
    await JSONResponse(said | {"headers": dict(request.headers)})(scope, receive, send)


class Client:
    """A client that speaks bytes."""

    def __init__(self, server: HttpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, Any]:
        """The next answer: its status and its JSON."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 30)
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        return int(head.split()[1]), json.loads(await self.reader.readexactly(int(length.split()[1])))

    async def status(self, sent: bytes) -> int:
        """Send something, and read to the end of the connection; the status that was answered first."""
        self.writer.write(sent)
        return int((await asyncio.wait_for(self.reader.read(), 30)).split()[1])


@asynccontextmanager
async def connected(**settings: Any) -> AsyncIterator[Client]:
    """A connection to the server that every role has, in front of the echo."""
    bound = listen_on("127.0.0.1", 0)
    server = HttpServer(echo, **settings)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    reader, writer = await asyncio.open_connection("127.0.0.1", bound.getsockname()[1])
    try:
        yield Client(server, reader, writer)
    finally:
        writer.transport.abort()
        server.should_exit = True
        await serving


def split(raw: bytes, size: int) -> list[bytes]:
    """Bytes in pieces."""
    return [raw[at : at + size] for at in range(0, len(raw), size)]


@pytest.mark.parametrize("pieces", [1, 50, 10_000])
@pytest.mark.parametrize("body", BODIES)
async def test_a_body_that_comes_with_an_offer_of_h2c_is_served(body: str, pieces: int) -> None:
    """Given a POST as Java's HttpClient sends it, then it is answered by HTTP/1.1, and so is the next."""
    header, content = BODIES[body]
    async with connected() as client:
        for part in split(
            b"POST /v1/jobs?x=1 HTTP/1.1\r\nHost: x\r\n" + header + H2C + b"\r\n" + content + NEXT, pieces
        ):
            client.writer.write(part)
            await asyncio.sleep(0)
        status, said = await client.answer()
        assert (status, said["method"], said["path"], said["body"]) == (200, "POST", "/v1/jobs", '{"a": "b"}')
        assert not {"upgrade", "http2-settings"} & said["headers"].keys()
        assert (await client.answer())[1]["path"] == "/next"


async def test_a_get_that_comes_with_an_offer_of_h2c_is_served() -> None:
    """Given no body, then the same; and a websocket is offered nothing."""
    async with connected() as client:
        client.writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n" + NEXT)
        assert (await client.answer())[1]["path"] == "/a"
        assert (await client.answer())[1]["path"] == "/next"
        client.writer.write(
            b"GET /w HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        assert (await client.answer())[1]["headers"]["connection"] == "keep-alive"


async def test_a_job_that_comes_with_an_offer_of_h2c_is_created(lone: Api) -> None:
    """Given a whole service, then the job that Java posts is there."""
    body = json.dumps({"type": "generate", "prompt": "from Java", "width": 64, "height": 64, "steps": 2}).encode()
    url = lone.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n" % len(body)
    writer.write(head + H2C + b"\r\n")
    writer.write(body)
    answer = await asyncio.wait_for(reader.readuntil(b"}}}"), 30)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 202")
    job_id = json.loads(answer.partition(b"\r\n\r\n")[2])["job"]["id"]
    assert lone.job(job_id)["params"]["prompt"] == "from Java"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: y\n\r\n",
        b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_two_servers_could_read_in_two_ways_is_rejected(sent: bytes) -> None:
    """Given a head that a proxy may take for another, or of another protocol, then 400 and the end."""
    async with connected() as client:
        assert await client.status(sent) == 400


async def test_a_bare_line_feed_is_rejected_by_the_whole_service(lone: Api) -> None:
    """Given a header line that ends in LF alone, which a proxy may take for a part of it, then 400."""
    url = lone.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /v1/ HTTP/1.1\r\nHost: 127.0.0.1\nX: y\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_trailers_are_no_headers() -> None:
    """Given a trailer, which no proxy has looked at, then the application never sees it."""
    async with connected() as client:
        client.writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Late: 1\r\n\r\n" + NEXT
        )
        _, said = await client.answer()
        assert said["body"] == "hi"
        assert "x-late" not in said["headers"]
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("pieces", [1000, 10**6])
@pytest.mark.parametrize(
    "head",
    [
        b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 2 * MAX_HEAD_BYTES),
        b"GET / HTTP/1.1\r\nHost: x\r\nX: %b" % (b"a" * 8 * MAX_HEAD_BYTES),
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES,
    ],
    ids=["target", "header", "headers"],
)
async def test_a_head_without_end_is_rejected(head: bytes, pieces: int) -> None:
    """Given a head that is no more than its size, then 400 before it is in memory; bodies may be longer."""
    async with connected() as client:

        async def send() -> None:
            for part in split(head, pieces):
                client.writer.write(part)
                await client.writer.drain()

        sending = asyncio.create_task(send())
        first = await asyncio.wait_for(client.reader.readline(), 30)
        assert first.split()[1] == b"400"
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_body_is_no_head() -> None:
    """Given a body longer than a head may be, and a request behind it in the same breath, then both are served."""
    async with connected() as client:
        body = b"a" * 3 * MAX_HEAD_BYTES
        client.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body + NEXT[:-2])
        assert len((await client.answer())[1]["body"]) == len(body)
        client.writer.write(NEXT[-2:])
        assert (await client.answer())[1]["path"] == "/next"


# Connections ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["timeout_keep_alive_handler", "_on_timeout", "shutdown"])
async def test_an_idle_connection_is_not_closed_under_a_request(ends: str) -> None:
    """Given a request that has come in the moment of the closing, then it is answered, rather than reset."""
    async with connected() as client:
        client.writer.write(NEXT)
        assert (await client.answer())[0] == 200
        [connection] = client.server.server_state.connections
        with socket.socket(fileno=socket.dup(client.writer.get_extra_info("socket").fileno())) as sock:
            sock.send(NEXT)  # it has come, and the server's loop, which is this one, has not read it
        getattr(connection, ends)()
        assert (await client.answer())[1]["path"] == "/next"
        if ends == "shutdown":
            assert await asyncio.wait_for(client.reader.read(), 30) == b""


async def test_the_rest_of_a_body_that_was_answered_already_is_no_head() -> None:
    """Given a body that ends after its answer, then the connection is idle, and kept as long as any other."""
    async with connected() as client:
        client.writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234")
        assert (await client.answer())[1]["path"] == "/early"
        client.writer.write(b"56789")
        connection: Any
        [connection] = client.server.server_state.connections

        async def kept_s() -> float:
            late: asyncio.TimerHandle | None = connection._timeout_handle
            return 0.0 if late is None else late.when() - connection.loop.time()

        assert await eventually(kept_s, what="the timer of an idle connection") > HEAD_TIMEOUT_S
        client.writer.write(NEXT[:9])

        async def has_a_heads_time() -> bool:
            return 0 < await kept_s() <= HEAD_TIMEOUT_S

        await eventually(has_a_heads_time, what="the timer of a head")
        client.writer.write(NEXT[9:])
        assert (await client.answer())[1]["path"] == "/next"


async def test_an_idle_connection_is_closed_in_the_end() -> None:
    """Given a client that says nothing more, then the connection ends, without an error."""
    async with connected(idle_timeout_s=0) as client:
        client.writer.write(NEXT)
        assert (await client.answer())[0] == 200
        assert await asyncio.wait_for(client.reader.read(), 30) == b""


async def test_connections_outlive_those_of_common_clients() -> None:
    """Given clients that close after 5 seconds and balancers that do after 60, then we never are the first."""
    async with connected() as client:
        assert client.server.config.timeout_keep_alive > 60


async def accepted_without_delay() -> bool:
    """Whether Nagle's algorithm is off on an accepted connection."""
    async with connected() as client:
        client.writer.write(NEXT)
        assert (await client.answer())[0] == 200
        [connection] = client.server.server_state.connections
        number = connection.transport.get_extra_info("socket").fileno()
        with socket.socket(fileno=socket.dup(number)) as sock:
            return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


async def test_answers_are_sent_at_once() -> None:
    """Given asyncio, then the sockets that are accepted have TCP_NODELAY: else answers wait for the client's ACKs."""
    assert await accepted_without_delay()


def test_answers_are_sent_at_once_on_uvloop() -> None:
    """Given the loop of the service's processes, then the same."""
    assert process.run_on_uvloop(accepted_without_delay())


def test_the_services_processes_run_on_uvloop() -> None:
    """Then whatever a role does is done on uvloop's loop."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def work() -> None:
        loops.append(asyncio.get_running_loop())

    assert process.run_and_report_errors(work()) == 0
    assert isinstance(loops[0], uvloop.Loop)
