"""A client of the service's HTTP API, for the command line and the demo.

ClientError
├── Unreachable    nothing answers there, or not the service
└── ApiError       the service answered with an error
"""

import hashlib
import ipaddress
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from dreamforge.sse import Message, Parser

JsonObject = dict[str, Any]
T = TypeVar("T")

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# A stream's heartbeat comes every 15 seconds unless the server says otherwise; four missed ones are a dead line.
_STREAM_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_PAUSE_S = 2.0
_PAGE = 1000


class ClientError(Exception):
    """A request got no answer that can be used."""


class Unreachable(ClientError):
    """Nothing answers there, or something that is not the service."""


class ApiError(ClientError):
    """The service answered with an error, in the shape that all its errors have."""

    def __init__(self, status: int, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details or {}


class Damaged(ClientError):
    """An artifact arrived, but not as the service recorded it."""


class Client:
    """Speaks to one service. Use it in a `with` block, or close it; closing twice does nothing."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8001",
        *,
        patience_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._patience_s = patience_s
        self._transport = transport
        self._connections: dict[bool, httpx.Client] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        for connections in self._connections.values():
            connections.close()

    def ready(self) -> bool:
        """Whether the service is up and so is all that it needs."""
        try:
            return self._request("GET", "/readyz").is_success
        except Unreachable:
            return False

    def create_job(self, request: Mapping[str, Any]) -> JsonObject:
        """Submit a job; the answer's `job`."""
        job: JsonObject = self._json("POST", "/v1/jobs", body=request)["job"]
        return job

    def job(self, job_id: str) -> JsonObject:
        """A job as it stands."""
        return self._json("GET", _path(job_id))

    def artifacts(self, job_id: str) -> list[JsonObject]:
        """The artifacts that a job has written so far, by step, then item."""
        artifacts: list[JsonObject] = self._json("GET", _path(job_id, "artifacts"))["artifacts"]
        return artifacts

    def progress(self, job_id: str) -> JsonObject:
        """A job's progress, each step's included."""
        return self._json("GET", _path(job_id, "progress"), include="per_step")

    def events(self, job_id: str) -> Iterator[JsonObject]:
        """A job's whole history, page by page."""
        after_version, has_more = 0, True
        while has_more:
            page = self._json("GET", _path(job_id, "events"), after_version=after_version, limit=_PAGE)
            yield from page["events"]
            after_version, has_more = page["next_after_version"], page["has_more"]

    def stream(self, job_id: str, last_event_id: str = "") -> Iterator[Message]:
        """A job's events as they happen, from after `last_event_id` to the job's end.

        A lost connection is made anew and resumes where it broke off; a service that stays away for longer than the
        client's patience is `Unreachable`.
        """
        url = self.base_url + _path(job_id, "progress", "stream")
        place = _Place(last_event_id=last_event_id)
        silent_since: float | None = None
        while True:
            try:
                for message in self._connection_to(url, place):
                    silent_since = None
                    yield message
            except httpx.TransportError:
                pass  # a broken line and a server that closes mean the same: resume
            if place.at_end:
                return
            now = time.monotonic()
            silent_since = now if silent_since is None else silent_since
            if now - silent_since > self._patience_s:
                raise Unreachable(f"The service at {self.base_url} went away and did not come back.")
            time.sleep(place.pause_s)

    def download(self, artifact: JsonObject, folder: Path) -> Path:
        """Fetch an artifact by its presigned URL, check it, and name it as in the object store.

        The file appears whole or not at all.
        """
        path = folder / PurePosixPath(artifact["s3_key"]).name
        partial = path.with_name(f"{path.name}.part")
        try:
            self._fetch(artifact["url"], partial)
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (partial.stat().st_size, digest) != (artifact["bytes"], artifact["sha256"]):
                raise Damaged(f"{artifact['s3_key']} is not what the service recorded (its size or SHA-256 differs).")
            return partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _fetch(self, url: str, path: Path) -> None:
        shown = url.partition("?")[0]  # the query holds the signature
        try:
            with self._http(url).stream("GET", url) as response, path.open("wb") as file:
                if not response.is_success:
                    raise ApiError(response.status_code, "not_downloaded", f"{shown} answered {response.status_code}.")
                for chunk in response.iter_bytes():
                    file.write(chunk)
        except httpx.TransportError as error:
            raise Unreachable(f"The download of {shown} broke off ({str(error) or type(error).__name__}).") from error

    def _connection_to(self, url: str, place: "_Place") -> Iterator[Message]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if place.last_event_id:
            headers["Last-Event-ID"] = place.last_event_id
        with self._http(url).stream("GET", url, headers=headers, timeout=_STREAM_TIMEOUT) as response:
            if response.status_code == httpx.codes.NO_CONTENT:
                place.at_end = True
                return
            if not response.is_success:
                response.read()
                raise _error(response)
            parser = Parser(place.last_event_id)
            for chunk in response.iter_bytes():
                for message in parser.feed(chunk):
                    place.pass_by(message)
                    yield message
                place.last_event_id = parser.last_event_id
                place.pause_s = _PAUSE_S if parser.retry_ms is None else parser.retry_ms / 1000
        place.at_end = place.finished

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None, **params: str | int) -> JsonObject:
        response = self._request(method, path, body, params)
        if not response.is_success:
            raise _error(response)
        return _decoded(response, JsonObject)

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
    ) -> httpx.Response:
        url = self.base_url + path
        try:
            return self._http(url).request(method, url, json=body, params=params)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(
                f"No service answers at {self.base_url} ({str(error) or type(error).__name__})."
            ) from error

    def _http(self, url: str) -> httpx.Client:
        # A proxy named in the environment cannot reach this machine's own addresses.
        trust_env = not _is_loopback(url)
        if trust_env not in self._connections:
            self._connections[trust_env] = httpx.Client(
                trust_env=trust_env, timeout=_TIMEOUT, transport=self._transport, follow_redirects=True
            )
        return self._connections[trust_env]


class _Place(msgspec.Struct):
    """Where a stream has got to, across its connections."""

    last_event_id: str
    pause_s: float = _PAUSE_S
    finished: bool = False  # the newest event ends the job
    at_end: bool = False

    def pass_by(self, message: Message) -> None:
        if message.last_event_id != self.last_event_id:
            self.last_event_id = message.last_event_id
            self.finished = message.event == "log" and msgspec.json.decode(message.data)["code"] == "job.finish"


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    details: JsonObject | None = None


def _path(job_id: str, *rest: str) -> str:
    return "/".join(["/v1/jobs", quote(job_id, safe=""), *rest])


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _decoded(response: httpx.Response, form: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=form)
    except msgspec.DecodeError as error:
        raise Unreachable(
            f"What answers at {response.url} with status {response.status_code} is not Dream Forge."
        ) from error


def _error(response: httpx.Response) -> ApiError:
    body = _decoded(response, _ErrorBody)
    return ApiError(response.status_code, body.code, body.message, body.details)
