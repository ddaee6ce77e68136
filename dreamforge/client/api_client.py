"""A client of the service's HTTP API, for the command line and the demo.

ClientError
├── Unreachable     nothing answers there, or not the service
│   └── AnswerLost  the connection broke off: the service may have done what it was asked to
├── ApiError        the service answered with an error
├── Ambiguous       the beginning of an id that several jobs have
└── Damaged         an image arrived, but not as the service recorded it
"""

import contextlib
import hashlib
import ipaddress
import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx
import msgspec

from dreamforge.client.sse import Message, Parser

JsonObject = dict[str, Any]
Params = Mapping[str, str | int | None]
T = TypeVar("T")

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# A service that runs with DF_EAGER answers when the job has ended, by default after 300 seconds at the latest.
_CREATE_TIMEOUT = httpx.Timeout(330.0, connect=5.0)
# A stream's heartbeat comes every 15 seconds unless the server says otherwise; four missed ones are a dead line.
_STREAM_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_PAUSE_S = 2.0
_FOR_NOW = {429, 503}
"""What a service answers that will take the same request later."""
_LOST = (
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
    httpx.ReadTimeout,
    httpx.WriteTimeout,
)
_PAGE = 1000
_JOBS_PAGE = 200
_PREFIX = re.compile(r"[0-9a-fA-F-]{4,35}")
"""The beginning of a job's id. Shorter ones would hit by chance."""
_SEARCHED = 2000
"""Among how many of the newest jobs an id is looked for by its beginning."""
_SHOWN = 5


class ClientError(Exception):
    """A request got no answer that can be used."""


class Unreachable(ClientError):
    """Nothing answers there, or something that is not the service."""


class AnswerLost(Unreachable):
    """The connection broke off before the answer came; what was asked for may have been done."""


class Ambiguous(ClientError):
    """Several jobs have an id that begins as the given text does."""


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
        api_key: str | None = None,
        patience_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._authorization = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
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

    def create_job(
        self, request: Mapping[str, Any] | bytes, *, idempotency_key: str | None = None, wait_s: int | None = None
    ) -> JsonObject:
        """Submit a job; the answer's `job`. A request in bytes is sent as it is.

        idempotency_key: names this request, so that sending it again makes no second job; drawn if none is given. When
        the answer is lost, the request is sent again until it is answered or the client's patience ends. wait_s: the
        service is to answer when the job has ended, or after so many seconds.
        """
        key = idempotency_key or str(uuid4())
        headers = {b"Content-Type": b"application/json", b"Idempotency-Key": key.encode()}
        if wait_s is not None:
            headers[b"Prefer"] = b"wait=%d" % wait_s
        body = request if isinstance(request, bytes) else msgspec.json.encode(request)
        deadline = time.monotonic() + self._patience_s
        lost = False
        while True:
            try:
                return _job_of(
                    self._request("POST", "/v1/jobs", headers=headers, content=body, timeout=_CREATE_TIMEOUT)
                )
            except ClientError as error:
                lost = lost or isinstance(error, AnswerLost)
                for_now = isinstance(error, Unreachable) or (isinstance(error, ApiError) and error.status in _FOR_NOW)
                if not lost or not for_now:
                    raise
                if time.monotonic() > deadline:
                    again = (
                        f"it may have made the job; to send it again without making another: --idempotency-key {key}"
                    )
                    raise AnswerLost(f"{error} The answer to an earlier request was lost, and {again}") from error
            time.sleep(_PAUSE_S)

    def job(self, job_id: str, *, as_of: str | None = None, as_of_version: int | None = None) -> JsonObject:
        """A job as it stands, or as it stood at a time or after a version of its history."""
        return self._get(_path(job_id), as_of=as_of, as_of_version=as_of_version)

    def jobs(self, *, status: str | None = None, limit: int | None = None) -> Iterator[JsonObject]:
        """Jobs, the newest first: `limit` of them, or all."""
        return islice(self._jobs(status, min(limit or _JOBS_PAGE, _JOBS_PAGE)), limit)

    def find(self, text: str) -> str:
        """A job's id by its beginning, if one alone of the newest jobs has it; a whole id as it is."""
        if not _PREFIX.fullmatch(text):
            return text
        found: list[str] = [job["id"] for job in self.jobs(limit=_SEARCHED) if job["id"].startswith(text.lower())]
        if len(found) > 1:
            shown = ", ".join(found[:_SHOWN]) + (" …" if len(found) > _SHOWN else "")
            raise Ambiguous(f"{len(found)} jobs have an id that begins with {text}: {shown}")
        if not found:
            raise ApiError(404, "not_found", f"None of the newest {_SEARCHED} jobs has an id that begins with {text}.")
        return found[0]

    def cancel(self, job_id: str) -> JsonObject:
        """Ask for a job to be cancelled; the answer's `job`."""
        return _job_of(self._request("POST", _path(job_id, "cancel")))

    def retry(self, job_id: str) -> JsonObject:
        """Ask for the failed step of a job to run again; the answer's `job`."""
        return _job_of(self._request("POST", _path(job_id, "retry")))

    def artifacts(self, job_id: str) -> list[JsonObject]:
        """The artifacts that a job has written so far, by step, then item."""
        artifacts: list[JsonObject] = self._get(_path(job_id, "artifacts"))["artifacts"]
        return artifacts

    def progress(self, job_id: str, *, include: str | None = "per_step") -> JsonObject:
        """A job's progress, each step's included unless told otherwise."""
        return self._get(_path(job_id, "progress"), include=include)

    def logs(self, job_id: str, *, tail: int | None = None, since: str | None = None) -> Iterator[str]:
        """A job's history as lines of JSON, verbatim, as they come: the last `tail`, or those since a time."""
        with self.streamed(_path(job_id, "logs"), tail=tail, since_ts=since) as response:
            rest = b""
            for chunk in response.iter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode() for line in lines)

    def events(self, job_id: str) -> Iterator[JsonObject]:
        """A job's whole history, page by page."""
        after_version, has_more = 0, True
        while has_more:
            page = self._get(_path(job_id, "events"), after_version=after_version, limit=_PAGE)
            yield from page["events"]
            after_version, has_more = page["next_after_version"], page["has_more"]

    def log_events(self, *, codes: str | None = None, category: str | None = None) -> Iterator[JsonObject]:
        """The whole log, page by page, or what of it has certain codes (with commas between) or one category."""
        cursor, has_more = None, True
        while has_more:
            page = self._get("/v1/events", cursor=cursor, limit=_PAGE, codes=codes, category=category)
            yield from page["events"]
            cursor, has_more = page["next_cursor"], page["has_more"]

    def stream(self, job_id: str, last_event_id: str = "", *, since: str | None = None) -> Iterator[Message]:
        """A job's events as they happen, from after `last_event_id`, or since a time, to the job's end.

        A lost connection is made anew and resumes where it broke off; a service that stays away for longer than the
        client's patience is `Unreachable`.
        """
        position = _StreamPosition(last_event_id=last_event_id, ends=_ends_job)
        return self._resumed(_path(job_id, "progress", "stream"), position, {"since_ts": since})

    def log_stream(
        self, begin: str = "start", *, codes: str | None = None, category: str | None = None
    ) -> Iterator[Message]:
        """The whole log as it grows, from its start or from now on, without end; resumed like a job's stream."""
        # A stream waits for a service that went away; one that never was there is an error at once.
        self._get("/v1/")
        params = {"from": begin, "codes": codes, "category": category}
        told = self._resumed("/v1/events/stream", _StreamPosition(last_event_id=""), params)
        yield from (message for message in told if message.event != "cursor")

    @contextlib.contextmanager
    def streamed(self, path: str, *, last_event_id: str = "", **params: str | int | None) -> Iterator[httpx.Response]:
        """GET something whose body is to be read as it comes."""
        url = self.base_url + path
        headers = {"Cache-Control": "no-store"} | self._authorization
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        given = _given(params)
        try:
            with self._http(url).stream("GET", url, params=given, headers=headers, timeout=_STREAM_TIMEOUT) as response:
                if not response.is_success:
                    response.read()
                yield _checked(response)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error

    def download(self, artifact: JsonObject, folder: Path) -> Path:
        """Fetch an artifact by its presigned URL, check it, and name it as in the object store.

        The file appears whole or not at all.
        """
        path = folder / PurePosixPath(artifact["s3_key"]).name
        partial = path.with_name(f"{path.name}.part")
        try:
            self._fetch(artifact["url"], partial, artifact["bytes"])
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (partial.stat().st_size, digest) != (artifact["bytes"], artifact["sha256"]):
                raise Damaged(f"{artifact['s3_key']} is not what the service recorded (its size or SHA-256 differs).")
            return partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _fetch(self, url: str, path: Path, most: int) -> None:
        """Write what a URL gives to a file, and no more than `most` bytes and a chunk: it may be anything."""
        shown = url.partition("?")[0]  # the query holds the signature
        try:
            with self._http(url).stream("GET", url) as response, path.open("wb") as file:
                if not response.is_success:
                    raise ApiError(response.status_code, "not_downloaded", f"{shown} answered {response.status_code}.")
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    if file.tell() > most:
                        return
        except httpx.TransportError as error:
            raise Unreachable(f"The download of {shown} broke off ({str(error) or type(error).__name__}).") from error

    def _jobs(self, status: str | None, page_size: int) -> Iterator[JsonObject]:
        cursor: str | None = None
        while True:
            page = self._get("/v1/jobs", status=status, limit=page_size, cursor=cursor)
            yield from page["jobs"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def _resumed(self, path: str, position: "_StreamPosition", params: Params) -> Iterator[Message]:
        while True:
            # A broken line, a server that closes and one that is away for a moment mean the same: resume.
            with contextlib.suppress(Unreachable):
                yield from self._connection_to(path, position, params)
            if position.at_end:
                return
            now = time.monotonic()
            position.silent_since = now if position.silent_since is None else position.silent_since
            if now - position.silent_since > self._patience_s:
                raise Unreachable(f"The service at {self.base_url} went away and did not come back.")
            time.sleep(position.pause_s)

    def _connection_to(self, path: str, position: "_StreamPosition", params: Params) -> Iterator[Message]:
        with self.streamed(path, last_event_id=position.last_event_id, **params) as response:
            if response.status_code == httpx.codes.NO_CONTENT:
                position.at_end = True
                return
            parser = Parser(position.last_event_id)
            for chunk in response.iter_bytes():
                for message in parser.feed(chunk):
                    position.pass_by(message)
                    yield message
                if parser.told:
                    position.silent_since = None
                position.last_event_id = parser.last_event_id
                position.pause_s = _PAUSE_S if parser.retry_ms is None else parser.retry_ms / 1000
        position.at_end = position.ended

    def _get(self, path: str, **params: str | int | None) -> JsonObject:
        return _decoded(_checked(self._request("GET", path, params=_given(params))), JsonObject)

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Mapping[bytes, bytes] | None = None,
        content: bytes | None = None,
        timeout: httpx.Timeout = _TIMEOUT,
    ) -> httpx.Response:
        url = self.base_url + path
        try:
            given = httpx.Headers(headers)
            given.update(self._authorization)
            return self._http(url).request(method, url, params=params, headers=given, content=content, timeout=timeout)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        reason = str(error) or type(error).__name__
        if isinstance(error, _LOST):
            return AnswerLost(f"The connection to {self.base_url} broke off ({reason}).")
        way_out = "start one by `dreamforge up`, or set DF_API_BASE"
        return Unreachable(f"No service answers at {self.base_url} ({reason}): {way_out}.")

    def _http(self, url: str) -> httpx.Client:
        # A proxy named in the environment cannot reach this machine's own addresses.
        trust_env = not _is_loopback(url)
        if trust_env not in self._connections:
            self._connections[trust_env] = httpx.Client(
                trust_env=trust_env, timeout=_TIMEOUT, transport=self._transport, follow_redirects=True
            )
        return self._connections[trust_env]


class _StreamPosition(msgspec.Struct):
    """Where a stream has got to, across its connections. ends: whether an event is a stream's last."""

    last_event_id: str
    ends: Callable[[Message], bool] = lambda _message: False
    pause_s: float = _PAUSE_S
    silent_since: float | None = None
    ended: bool = False  # the newest event was the last
    at_end: bool = False

    def pass_by(self, message: Message) -> None:
        if message.last_event_id != self.last_event_id:
            self.last_event_id = message.last_event_id
            self.ended = self.ends(message)


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    details: JsonObject | None = None


def log_line(job_id: str, message: Message) -> JsonObject:
    """A message of a job's stream as the line that `/logs` has for the same event."""
    data = msgspec.json.decode(message.data, type=JsonObject)
    line = {name: data.get(name) for name in ("ts", "level", "code", "message")}
    match message.event:
        case "error":
            line["code"] = "error"  # data's own code is the job's error code
        case "artifact":
            size = f"{data['width']}x{data['height']}"
            line["message"] = f"Step {data['step']} wrote item {data['item_index']} ({size})."
    return {**line, "job_id": job_id, **data["payload"]}


def _job_of(response: httpx.Response) -> JsonObject:
    job: JsonObject = _decoded(_checked(response), JsonObject)["job"]
    return job


def _ends_job(message: Message) -> bool:
    return message.event == "log" and msgspec.json.decode(message.data)["code"] == "job.finish"


def _given(params: Params) -> dict[str, str | int]:
    return {name: value for name, value in params.items() if value is not None}


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


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    body = _decoded(response, _ErrorBody)
    raise ApiError(response.status_code, body.code, body.message, body.details)
