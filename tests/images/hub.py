"""A hub of one repository: as much of Hugging Face's as fetching and opening a model asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPO = "masons/castles"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

LARGE = ".safetensors"
"""What it sends from a store on another host."""


class Hub:
    """What the hub holds, by path, and what it was asked for.

    stalls: how many bytes it sends of a file before it falls silent, by path. asked: each file's path and the range of
    it. lies: paths whose digests it tells wrong. tokens_shown: how often its store, which is elsewhere, saw a token.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.stalls: dict[str, int] = {}
        self.lies: set[str] = set()
        self.asked: list[tuple[str, str | None]] = []
        self.revisions: list[str] = []
        self.tokens_shown = 0
        self.url = ""
        self.over = threading.Event()

    def info(self) -> dict[str, Any]:
        """The repository at its commit, as `/api/models` tells of it: large files by SHA-256, others as git does."""
        siblings = []
        for path, content in self.files.items():
            told = content + b"?" if path in self.lies else content
            sibling: dict[str, Any] = {"rfilename": path, "size": len(content)}
            if path.endswith(LARGE):
                sha256 = hashlib.sha256(told).hexdigest()
                sibling["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
            blob = b"blob %d\0" % len(told) + told
            sibling["blobId"] = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
            siblings.append(sibling)
        return {"id": REPO, "modelId": REPO, "sha": COMMIT, "tags": [], "siblings": siblings}

    def tree(self) -> list[dict[str, Any]]:
        """The files of the commit, as `/tree` lists them."""
        entries = []
        for sibling in self.info()["siblings"]:
            entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": sibling["blobId"]}
            if "lfs" in sibling:
                entry["lfs"] = sibling["lfs"] | {"oid": sibling["lfs"]["sha256"]}
            entries.append(entry)
        return entries


class _Server(ThreadingHTTPServer):
    hub: Hub
    daemon_threads = True


class _Answer(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """The repository, or the bytes of a file from where a range begins."""
        path = self.path.partition("?")[0]
        if path == f"/api/models/{REPO}":
            path += "/revision/main"
        start, _, revision = path.rpartition("/revision/")
        if start == f"/api/models/{REPO}":
            self.server.hub.revisions.append(revision)
            if revision in {"main", "v1", COMMIT}:
                self._send(200, json.dumps(self.server.hub.info()).encode())
                return
        if path == f"/api/models/{REPO}/tree/{COMMIT}":
            self._send(200, json.dumps(self.server.hub.tree()).encode())
            return
        start, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if start == f"/{REPO}" and revision in {"main", COMMIT} and name in self.server.hub.files:
            if name.endswith(LARGE):
                content = self.server.hub.files[name]
                linked = {
                    "Location": f"http://localhost:{self.server.server_port}/store/{name}",
                    "X-Linked-Size": str(len(content)),
                    "X-Linked-ETag": _etag(content),
                }
                self._send(302, b"", None, **linked)
            else:
                self._file(name)
            return
        name = path.removeprefix("/store/")
        if name in self.server.hub.files:
            self.server.hub.tokens_shown += self.headers["Authorization"] is not None
            self._file(name)
            return
        self._send(404, b"{}")

    def do_HEAD(self) -> None:
        """The same without the bytes."""
        self.do_GET()

    def _file(self, name: str) -> None:
        wanted = self.headers["Range"]
        if self.command == "GET":
            self.server.hub.asked.append((name, wanted))
        content = self.server.hub.files[name]
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        more = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if wanted else {}
        more["ETag"] = _etag(content)
        self._send(206 if wanted else 200, content[first:], self.server.hub.stalls.get(name), **more)

    def _send(self, status: int, body: bytes, until: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for header, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:until])
        if until is not None:
            self.wfile.flush()
            self.server.hub.over.wait(60)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()}"'


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that listens until the end of the block."""
    hub = Hub(files)
    with _Server(("127.0.0.1", 0), _Answer) as server:
        server.hub = hub
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.over.set()
            server.shutdown()
            thread.join()
