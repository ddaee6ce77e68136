"""Requests that no honest client sends: malformed, oversized, lying about themselves; drawn from a seed."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from tests.kit import NOBODY

_ANSWER_S = 90.0  # longer than the longest `Prefer: wait`
_METHODS = ["GET", "GET", "GET", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "X" * 300]
_PATHS = [
    "/v1/jobs",
    "/v1/jobs/{id}",
    "/v1/jobs/{id}/artifacts",
    "/v1/jobs/{id}/artifacts/{id}/content",
    "/v1/jobs/{id}/cancel",
    "/v1/jobs/{id}/retry",
    "/v1/jobs/{id}/progress",
    "/v1/jobs/{id}/progress/stream",
    "/v1/jobs/{id}/events",
    "/v1/jobs/{id}/logs",
    "/v1/jobs/{id}/stream_token",
    "/v1/events",
    "/v1/events/stream",
    "/v1/anchors",
    "/v1/projections",
    "/v1/models",
    "/v1/models/{id}",
    "/v1/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/docs/assets/{id}",
    "/{id}",
]
_PARAMETERS = [
    "status", "limit", "cursor", "as_of", "as_of_version", "step", "tail", "since_ts", "include", "after_version",
    "codes", "category", "from", "last_event_id", "access_token", "enabled", "page", "wait",
]  # fmt: skip
_HEADERS = [
    "Last-Event-ID", "Idempotency-Key", "Prefer", "traceparent", "Content-Type", "Accept-Encoding", "Content-Encoding",
    "X-Request-Id", "X-Client-Request-Id", "Range", "If-None-Match", "Authorization", "Accept", "Origin", "Cookie",
    "Expect", "Upgrade", "Connection", "X-Forwarded-For", "Access-Control-Request-Method",
]  # fmt: skip
_TEXTS = [
    "", " ", "0", "-1", "1", "2", "9" * 30, "1e9", "0x10", "NaN", "null", "true", "[]", "{}", "'", '"', "\\", "%",
    "%00", "%zz", "%c3%28", "%ed%a0%80", "+", "..", "../../etc/passwd", "a b", "\t", "é", "٣", "\uff11\uff12", "💥",
    "2026-01-02T12:00:00Z", "2026-02-30T00:00:00Z", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00-23:59", "T", "Z",
    str(NOBODY), str(NOBODY).upper(), "{" + str(NOBODY) + "}", "urn:uuid:" + str(NOBODY), str(NOBODY)[:-1],
    "a" * 5000, "respond-async, wait=" + "9" * 400, "wait=-1", 'wait=1;x="', 'W/"v1", *', "gzip;q=0, *;q=9",
    "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "Bearer", "Bearer " + "x" * 3000, "Basic Og==", "100-continue", "h2c",
    "application/json; charset=utf-16", "text/plain", "application/x-ndjson", "bytes=0-", "job.created,,", "model",
    "eyJhIjoxfQ", "AAAA", "=" * 50, "per_step,step,x", "proof", "start", "now", "succeeded", "queued", "${jndi:ldap://x}",
    "<script>alert(1)</script>", "' or 1=1 --", "$(id)", "\x7f",
]  # fmt: skip
_JOB: dict[str, Any] = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2, "count": 1}
_FIELDS = [
    *_JOB, "negative_prompt", "guidance", "scheduler", "format", "embed_metadata", "seed", "model_id", "chain",
    "pipeline", "provider", "engine", "metadata", "__proto__", "é", "",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 15, 64.0, 64.5, 4097, 2**31, 2**53, 2**63, 2**64, -(2**63), 1e308, 1e-320, "", "64",
    "a\x00b", "\ud800", "\udfff\ud800", "a" * 5000, "é" * 4096, [], {}, [[]], {"a": 1}, {"upscale": {}},
    {"upscale": {"scale": 3}}, {"upscale": {"scale": "2"}}, {"upscale": None, "x": 1}, {"upscale": [1]},
    [{"type": "generate"}], [{"type": "generate", **_JOB}, {"type": "upscale"}], [None, None], {"k" * 65: "v"},
    {str(n): "v" for n in range(17)}, {"k": 1}, {"k": "v" * 513}, str(NOBODY), "png", "jpg", "PNG",
]  # fmt: skip
_RAW_BODIES = [
    b"", b"{", b"}", b"null", b"[]", b"1", b'"x"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"{}" * 1000, b"[" * 100_000,
    b'{"a":' * 50_000, b'{"prompt": "\\ud800"}', b'{"prompt": "\\u0000"}', b'{"type":"generate","type":"generate"}',
    b'{"seed": 1e400}', b'{"seed": NaN}', b'{"seed": Infinity}', b'{"seed": 0123}', b'{"seed": 1}garbage',
    b"a=b&c=d", b"\x00" * 100, b"{" + b" " * 100_000 + b"}", b'{"width": ' + b"9" * 10_000 + b"}",
    '{"prompt": "é"}'.encode("utf-16"), b'{"prompt": "\xc3\x28"}', b"x" * 1_200_000,
]  # fmt: skip
_FRAGMENTS = [
    b"GARBAGE\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
    b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 200_000,
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nContent-Length: 20\r\n\r\n{}",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b'POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\n\r\n{"type"',
    b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n" + b"".join(b"H%d: v\r\n" % n for n in range(2000)) + b"\r\n",
    b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET \xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"",
]  # fmt: skip


class Sent(msgspec.Struct, frozen=True):
    """A request as bytes. whole: nothing more would follow; else the server may just close."""

    raw: bytes
    whole: bool


class Hostile:
    """Draws requests. The same seed draws the same ones."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def request(self) -> Sent:
        """The next."""
        if self._dice.random() < 0.1:
            return Sent(self._dice.choice(_FRAGMENTS), whole=False)
        method = self._dice.choice(_METHODS)
        body = self._body() if method in {"POST", "PUT", "PATCH"} or self._dice.random() < 0.05 else b""
        head = [f"{method} {self._target(method)} HTTP/1.1".encode("utf-8", "surrogatepass"), b"Host: 127.0.0.1"]
        head.append(b"Content-Length: %d" % len(body))
        if self._dice.random() < 0.7:
            head.append(b"Connection: close")
        head.extend(self._header() for _ in range(self._dice.choice([0, 0, 1, 1, 2, 3])))
        return Sent(b"\r\n".join(head) + b"\r\n\r\n" + body, whole=True)

    def _target(self, method: str) -> str:
        path = self._dice.choice(_PATHS) if method != "POST" or self._dice.random() < 0.4 else "/v1/jobs"
        while "{id}" in path:
            path = path.replace("{id}", self._quoted(self._dice.choice(_TEXTS)), 1)
        pairs = [
            f"{self._dice.choice([*_PARAMETERS, 'x'])}={self._quoted(self._dice.choice(_TEXTS))}"
            for _ in range(self._dice.choice([0, 0, 1, 1, 2, 6]))
        ]
        return path + ("?" + "&".join(pairs) if pairs else "")

    def _quoted(self, text: str) -> str:
        """Mostly as a client would, at times as it must not: but without what would end the request's first line."""
        if self._dice.random() < 0.7:
            return quote(text, safe="")
        return "".join(one for one in text if one > " " and one != "\x7f")

    def _header(self) -> bytes:
        name = self._dice.choice(_HEADERS)
        value = self._dice.choice(_TEXTS).encode("utf-8", "surrogatepass")
        if self._dice.random() < 0.05:
            value = bytes(self._dice.choices(range(0x20, 0x100), k=40)).replace(b"\x7f", b"")
        return name.encode() + b": " + value

    def _body(self) -> bytes:
        if self._dice.random() < 0.3:
            return self._dice.choice(_RAW_BODIES)
        job = dict(_JOB)
        for _ in range(self._dice.choice([0, 1, 1, 2, 4])):
            job[self._dice.choice(_FIELDS)] = self._dice.choice(_VALUES)
        for _ in range(self._dice.choice([0, 0, 1])):
            job.pop(self._dice.choice(list(job)))
        return self._mangled(json.dumps(job, ensure_ascii=self._dice.random() < 0.5).encode("utf-8", "surrogatepass"))

    def _mangled(self, body: bytes) -> bytes:
        """A body, at times with a byte changed, taken out or doubled."""
        if not body or self._dice.random() < 0.7:
            return body
        offset = self._dice.randrange(len(body))
        change: Callable[[bytes], bytes] = self._dice.choice([lambda _: b"", lambda one: one * 2, lambda _: b"\xff"])
        return body[:offset] + change(body[offset : offset + 1]) + body[offset + 1 :]


async def status_of(host: str, port: int, sent: Sent) -> int | None:
    """The status that a request is answered with; None where the server closes without, or waits for the rest."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(sent.raw)
        if not sent.whole and writer.can_write_eof():
            writer.write_eof()
        line = await asyncio.wait_for(reader.readline(), _ANSWER_S)
        return int(line.split()[1]) if line.startswith(b"HTTP/1.") else None
    except (ConnectionError, asyncio.IncompleteReadError, ValueError):
        return None
    finally:
        writer.transport.abort()
