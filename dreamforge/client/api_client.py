"""A client of the service's HTTP API, for the command line and the demo."""

import contextlib
import hashlib
import ipaddress
import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx
import msgspec

from dreamforge.client.responses import (
    AmbiguousId,
    ApiError,
    ClientError,
    DamagedDownload,
    JsonObject,
    ResponseLost,
    Unreachable,
    decode_job,
    decode_json,
    expect_success,
)
from dreamforge.client.sse import EventStreamParser, ServerSentEvent

QueryParams = Mapping[str, str | int | None]

_REQUEST_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# With DF_EAGER the service responds when the job has ended, by default after 300 seconds at the latest.
_CREATE_JOB_TIMEOUT = httpx.Timeout(330.0, connect=5.0)
# By default, a stream has a heartbeat every 15 seconds; without four of them the connection is dead.
_STREAM_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_RETRY_PAUSE_S = 2.0
_RETRYABLE_STATUSES = {429, 503}
_BROKEN_CONNECTION_ERRORS = (
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
    httpx.ReadTimeout,
    httpx.WriteTimeout,
)
_EVENTS_PAGE_SIZE = 1000
_JOBS_PAGE_SIZE = 200
_JOB_ID_PREFIX_PATTERN = re.compile(r"[0-9a-fA-F-]{4,35}")
"""A prefix of a job's id. A shorter one could match by chance."""
_MAX_SEARCHED_JOBS = 2000
"""How many of the newest jobs are searched for an id with a prefix."""
_MAX_LISTED_MATCHES = 5


class Client:
    """A client of one service. Use it in a `with` block, or close it; a second close does nothing.

    patience_s: how long to retry while the service is unreachable.
    """

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
        self._http_clients: dict[bool, httpx.Client] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        for connections in self._http_clients.values():
            connections.close()

    def is_ready(self) -> bool:
        """Whether the service and everything that it needs are up."""
        try:
            return self._request("GET", "/readyz").is_success
        except Unreachable:
            return False

    def create_job(
        self, request: Mapping[str, Any] | bytes, *, idempotency_key: str | None = None, wait_s: int | None = None
    ) -> JsonObject:
        """Submit a job; returns the response's `job`. A request in bytes is sent unchanged.

        idempotency_key: requests with the same key create one job; None: a random one. After a lost response, the
        request is repeated for up to `patience_s` seconds. wait_s: the service responds when the job has ended, or
        after this many seconds.
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
                return decode_job(
                    self._request("POST", "/v1/jobs", headers=headers, content=body, timeout=_CREATE_JOB_TIMEOUT)
                )
            except ClientError as error:
                lost = lost or isinstance(error, ResponseLost)
                retryable = isinstance(error, ApiError) and error.status in _RETRYABLE_STATUSES
                retryable = retryable or isinstance(error, Unreachable)
                if not lost or not retryable:
                    raise
                if time.monotonic() > deadline:
                    advice = (
                        f"it may have made the job; to send it again without making another: --idempotency-key {key}"
                    )
                    raise ResponseLost(f"{error} The answer to an earlier request was lost, and {advice}") from error
            time.sleep(_RETRY_PAUSE_S)

    def job(self, job_id: str, *, as_of: str | None = None, as_of_version: int | None = None) -> JsonObject:
        """A job now, at a time, or after a version of its history."""
        return self._get_json(_job_path(job_id), as_of=as_of, as_of_version=as_of_version)

    def jobs(self, *, status: str | None = None, limit: int | None = None) -> Iterator[JsonObject]:
        """Jobs, newest first. limit: None: all."""
        return islice(self._iterate_job_pages(status, min(limit or _JOBS_PAGE_SIZE, _JOBS_PAGE_SIZE)), limit)

    def find_job_id(self, id_or_prefix: str) -> str:
        """The id of the only job among the newest ones whose id begins with the text. A complete id is returned as is.

        Raises `AmbiguousId`, and `ApiError` (404) if there is none.
        """
        if not _JOB_ID_PREFIX_PATTERN.fullmatch(id_or_prefix):
            return id_or_prefix
        prefix = id_or_prefix.lower()
        ids: list[str] = [job["id"] for job in self.jobs(limit=_MAX_SEARCHED_JOBS) if job["id"].startswith(prefix)]
        if len(ids) > 1:
            listed = ", ".join(ids[:_MAX_LISTED_MATCHES]) + (" …" if len(ids) > _MAX_LISTED_MATCHES else "")
            raise AmbiguousId(f"{len(ids)} jobs have an id that begins with {id_or_prefix}: {listed}")
        if not ids:
            message = f"None of the newest {_MAX_SEARCHED_JOBS} jobs has an id that begins with {id_or_prefix}."
            raise ApiError(404, "not_found", message)
        return ids[0]

    def cancel(self, job_id: str) -> JsonObject:
        """Request the cancellation of a job; returns the response's `job`."""
        return decode_job(self._request("POST", _job_path(job_id, "cancel")))

    def retry(self, job_id: str) -> JsonObject:
        """Request a retry of a job's failed step; returns the response's `job`."""
        return decode_job(self._request("POST", _job_path(job_id, "retry")))

    def artifacts(self, job_id: str) -> list[JsonObject]:
        """The artifacts that a job has written so far, by step, then item."""
        artifacts: list[JsonObject] = self._get_json(_job_path(job_id, "artifacts"))["artifacts"]
        return artifacts

    def progress(self, job_id: str, *, include: str | None = "per_step") -> JsonObject:
        """A job's progress, by default with that of each step."""
        return self._get_json(_job_path(job_id, "progress"), include=include)

    def logs(self, job_id: str, *, tail: int | None = None, since: str | None = None) -> Iterator[str]:
        """A job's history as lines of JSON, as received: the last `tail` lines, or those since a time."""
        with self.get_stream(_job_path(job_id, "logs"), tail=tail, since_ts=since) as response:
            rest = b""
            for chunk in response.iter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode() for line in lines)

    def events(self, job_id: str) -> Iterator[JsonObject]:
        """All events of a job, page by page."""
        after_version, has_more = 0, True
        while has_more:
            page = self._get_json(_job_path(job_id, "events"), after_version=after_version, limit=_EVENTS_PAGE_SIZE)
            yield from page["events"]
            after_version, has_more = page["next_after_version"], page["has_more"]

    def log_events(self, *, codes: str | None = None, category: str | None = None) -> Iterator[JsonObject]:
        """The events of the log, page by page. codes: comma-separated."""
        cursor, has_more = None, True
        while has_more:
            page = self._get_json("/v1/events", cursor=cursor, limit=_EVENTS_PAGE_SIZE, codes=codes, category=category)
            yield from page["events"]
            cursor, has_more = page["next_cursor"], page["has_more"]

    def stream(self, job_id: str, last_event_id: str = "", *, since: str | None = None) -> Iterator[ServerSentEvent]:
        """A job's events as they happen, after `last_event_id` or since a time, until the job ends.

        After a lost connection, the stream reconnects and resumes. Raises `Unreachable` if the service stays away for
        more than `patience_s` seconds.
        """
        position = _StreamPosition(last_event_id=last_event_id, is_last_message=_is_job_end)
        return self._stream_with_reconnects(_job_path(job_id, "progress", "stream"), position, {"since_ts": since})

    def log_stream(
        self, start_at: str = "start", *, codes: str | None = None, category: str | None = None
    ) -> Iterator[ServerSentEvent]:
        """The events of the log as they happen, from the start or from now, without end. Resumes as `stream` does."""
        # A stream retries a lost connection; a service that was never reachable is an error at once.
        self._get_json("/v1/")
        params = {"from": start_at, "codes": codes, "category": category}
        messages = self._stream_with_reconnects("/v1/events/stream", _StreamPosition(last_event_id=""), params)
        yield from (message for message in messages if message.event != "cursor")

    @contextlib.contextmanager
    def get_stream(self, path: str, *, last_event_id: str = "", **params: str | int | None) -> Iterator[httpx.Response]:
        """GET a response whose body is read incrementally."""
        url = self.base_url + path
        headers = {"Cache-Control": "no-store"} | self._authorization
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        try:
            with self._http_client_for(url).stream(
                "GET", url, params=_without_none(params), headers=headers, timeout=_STREAM_TIMEOUT
            ) as response:
                if not response.is_success:
                    response.read()
                yield expect_success(response)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable_error(error) from error

    def download(self, artifact: JsonObject, folder: Path) -> Path:
        """Download an artifact by its presigned URL, verify it, and name it as in the object store.

        The file appears only when it is complete. Raises `DamagedDownload` and `Unreachable`.
        """
        path = folder / PurePosixPath(artifact["s3_key"]).name
        partial = path.with_name(f"{path.name}.part")
        try:
            self._write_url_to_file(artifact["url"], partial, artifact["bytes"])
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (partial.stat().st_size, digest) != (artifact["bytes"], artifact["sha256"]):
                raise DamagedDownload(
                    f"{artifact['s3_key']} is not what the service recorded (its size or SHA-256 differs)."
                )
            return partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _write_url_to_file(self, url: str, path: Path, max_bytes: int) -> None:
        """Write a URL's content to a file; stop after `max_bytes` and one chunk, since the URL may serve anything."""
        source = url.partition("?")[0]  # the query has the signature
        try:
            with self._http_client_for(url).stream("GET", url) as response, path.open("wb") as file:
                if not response.is_success:
                    raise ApiError(response.status_code, "not_downloaded", f"{source} answered {response.status_code}.")
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    if file.tell() > max_bytes:
                        return
        except httpx.TransportError as error:
            raise Unreachable(f"The download of {source} broke off ({str(error) or type(error).__name__}).") from error

    def _iterate_job_pages(self, status: str | None, page_size: int) -> Iterator[JsonObject]:
        cursor: str | None = None
        while True:
            page = self._get_json("/v1/jobs", status=status, limit=page_size, cursor=cursor)
            yield from page["jobs"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def _stream_with_reconnects(
        self, path: str, position: "_StreamPosition", params: QueryParams
    ) -> Iterator[ServerSentEvent]:
        while True:
            # After a lost connection, a close by the server or a short outage: resume.
            with contextlib.suppress(Unreachable):
                yield from self._read_stream(path, position, params)
            if position.finished:
                return
            now = time.monotonic()
            position.silent_since = now if position.silent_since is None else position.silent_since
            if now - position.silent_since > self._patience_s:
                raise Unreachable(f"The service at {self.base_url} went away and did not come back.")
            time.sleep(position.pause_s)

    def _read_stream(self, path: str, position: "_StreamPosition", params: QueryParams) -> Iterator[ServerSentEvent]:
        with self.get_stream(path, last_event_id=position.last_event_id, **params) as response:
            if response.status_code == httpx.codes.NO_CONTENT:
                position.finished = True
                return
            parser = EventStreamParser(position.last_event_id)
            for chunk in response.iter_bytes():
                for message in parser.feed(chunk):
                    position.advance(message)
                    yield message
                if parser.received_event:
                    position.silent_since = None
                position.last_event_id = parser.last_event_id
                position.pause_s = _RETRY_PAUSE_S if parser.retry_ms is None else parser.retry_ms / 1000
        position.finished = position.received_last_message

    def _get_json(self, path: str, **params: str | int | None) -> JsonObject:
        return decode_json(expect_success(self._request("GET", path, params=_without_none(params))), JsonObject)

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: QueryParams | None = None,
        headers: Mapping[bytes, bytes] | None = None,
        content: bytes | None = None,
        timeout: httpx.Timeout = _REQUEST_TIMEOUT,
    ) -> httpx.Response:
        url = self.base_url + path
        try:
            all_headers = httpx.Headers(headers)
            all_headers.update(self._authorization)
            return self._http_client_for(url).request(
                method, url, params=params, headers=all_headers, content=content, timeout=timeout
            )
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable_error(error) from error

    def _unreachable_error(self, error: Exception) -> Unreachable:
        reason = str(error) or type(error).__name__
        if isinstance(error, _BROKEN_CONNECTION_ERRORS):
            return ResponseLost(f"The connection to {self.base_url} broke off ({reason}).")
        advice = "start one by `dreamforge up`, or set DF_API_BASE"
        return Unreachable(f"No service answers at {self.base_url} ({reason}): {advice}.")

    def _http_client_for(self, url: str) -> httpx.Client:
        # A proxy from the environment cannot reach loopback addresses of this machine.
        trust_env = not _is_loopback(url)
        if trust_env not in self._http_clients:
            self._http_clients[trust_env] = httpx.Client(
                trust_env=trust_env, timeout=_REQUEST_TIMEOUT, transport=self._transport, follow_redirects=True
            )
        return self._http_clients[trust_env]


class _StreamPosition(msgspec.Struct):
    """The position in a stream, across reconnects. is_last_message: whether a message is the last one of the stream."""

    last_event_id: str
    is_last_message: Callable[[ServerSentEvent], bool] = lambda _message: False
    pause_s: float = _RETRY_PAUSE_S
    silent_since: float | None = None
    received_last_message: bool = False  # the newest event was the last
    finished: bool = False

    def advance(self, message: ServerSentEvent) -> None:
        if message.last_event_id != self.last_event_id:
            self.last_event_id = message.last_event_id
            self.received_last_message = self.is_last_message(message)


def message_to_log_line(job_id: str, message: ServerSentEvent) -> JsonObject:
    """A message of a job's stream in the format of `/logs`."""
    data = msgspec.json.decode(message.data, type=JsonObject)
    line = {name: data.get(name) for name in ("ts", "level", "code", "message")}
    match message.event:
        case "error":
            line["code"] = "error"  # data's own code is the job's error code
        case "artifact":
            size = f"{data['width']}x{data['height']}"
            line["message"] = f"Step {data['step']} wrote item {data['item_index']} ({size})."
    return {**line, "job_id": job_id, **data["payload"]}


def _is_job_end(message: ServerSentEvent) -> bool:
    return message.event == "log" and msgspec.json.decode(message.data)["code"] == "job.finish"


def _without_none(params: QueryParams) -> dict[str, str | int]:
    return {name: value for name, value in params.items() if value is not None}


def _job_path(job_id: str, *rest: str) -> str:
    return "/".join(["/v1/jobs", quote(job_id, safe=""), *rest])


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
