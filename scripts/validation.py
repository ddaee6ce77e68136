"""What the validators share: jobs to look at, checks of them, and the report that the checks make."""

import argparse
import re
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec
from PIL import Image

from dreamforge import settings
from dreamforge.client.api_client import Client
from dreamforge.client.responses import ClientError, JsonObject
from dreamforge.client.sse import EventStreamParser, ServerSentEvent
from dreamforge.settings import SettingsError

TERMINAL = {"succeeded", "failed", "cancelled"}
T = TypeVar("T")

_WITHIN_S = 300.0
_POLL_S = 0.1
_KEY = re.compile(r"(?P<folder>.+/)\d{8}T\d{6}_(?P<item>\d+)_(?P<width>\d+)x(?P<height>\d+)_(?P<seed>\d+)\.png")


class Wrong(Exception):
    """Something is not as it should be."""


# What may come of a check that fails: the service answers otherwise, with an error, not at all, or in another form.
_FAULTS = (Wrong, ClientError, httpx.HTTPError, LookupError, TypeError, ValueError, OSError)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A job from its submission to its end. transcript: its stream, as it came."""

    client: Client
    job: JsonObject
    artifacts: list[JsonObject]
    transcript: str

    @classmethod
    def of(cls, client: Client, request: JsonObject) -> "Run":
        """Submit a job, follow its stream to the end, and look at what came of it."""
        job_id = client.create_job(request)["id"]
        transcript = stream_of(client, job_id)
        job = ended(client, job_id)
        return cls(client=client, job=job, artifacts=client.artifacts(job_id), transcript=transcript)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(self.job["id"])

    @property
    def messages(self) -> list[ServerSentEvent]:
        """What the stream said."""
        return messages(self.transcript)

    def of_step(self, step: str) -> list[JsonObject]:
        """The artifacts of a step."""
        return [one for one in self.artifacts if one["step"] == step]

    def data(self, event: str) -> list[JsonObject]:
        """The data of the stream's messages of one kind."""
        return data_of(self.transcript, event)


class Report:
    """Prints a line for each check, and remembers whether all went well."""

    def __init__(self) -> None:
        self.failures = 0

    def attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """Do what a check is about; its result, or None if it went wrong."""
        try:
            result = work()
        except _FAULTS as error:
            self.failures += 1
            say(f"FAILED {what}: {error if isinstance(error, Wrong | ClientError) else repr(error)}")
            return None
        say(f"ok     {what}")
        return result

    def check(self, *checks: Callable[[Run], None], run: Run) -> None:
        """Check a job by functions whose docstrings say what is checked."""
        for check in checks:
            self.attempt((check.__doc__ or check.__name__).rstrip("."), partial(check, run))

    def skip(self, what: str, why: str) -> None:
        """Say what was not checked."""
        say(f"skip   {what}: {why}")


def main(description: str, validate: Callable[[Client, Report], None]) -> int:
    """Run a validator; 0 if every check went well."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base", help="where the service is; DF_API_BASE or http://127.0.0.1:8001 unless given")
    args = parser.parse_args()
    try:
        base = args.base or settings.load_process_settings()[0].api_base
    except SettingsError as error:
        parser.error(str(error))
    report = Report()
    with Client(base, patience_s=10) as client:
        if not client.is_ready():
            say(f"FAILED No service is ready at {base}. Start one with `make up-fake`, or name another with --base.")
            return 1
        try:
            validate(client, report)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    say(f"{report.failures} checks FAILED." if report.failures else "All is as it should be.")
    return 1 if report.failures else 0


def expect(what: str, found: object, wanted: object) -> None:
    """Raise unless something is as it should be."""
    if found != wanted:
        raise Wrong(f"{what} should be {wanted!r}, but is {found!r}")


def ended(client: Client, job_id: str) -> JsonObject:
    """A job once it is terminal, by polling."""
    deadline = time.monotonic() + _WITHIN_S
    while (job := client.job(job_id))["status"] not in TERMINAL:
        if time.monotonic() > deadline:
            raise Wrong(f"job {job_id} is still {job['status']} after {_WITHIN_S:g} s")
        time.sleep(_POLL_S)
    return job


def stream_of(client: Client, job_id: str, **params: str) -> str:
    """A job's stream, raw, until the server closes it."""
    deadline = time.monotonic() + _WITHIN_S
    text = b""
    with client.get_stream(f"/v1/jobs/{job_id}/progress/stream", **params) as response:
        expect("the stream's type", response.headers["content-type"], "text/event-stream; charset=utf-8")
        for chunk in response.iter_bytes():
            text += chunk
            if time.monotonic() > deadline:
                raise Wrong(f"the stream of job {job_id} goes on after {_WITHIN_S:g} s")
    return text.decode()


def messages(transcript: str) -> list[ServerSentEvent]:
    """What a stream said."""
    return EventStreamParser().feed(transcript.encode())


def data_of(transcript: str, event: str) -> list[JsonObject]:
    """The data of a stream's messages of one kind."""
    return [msgspec.json.decode(one.data) for one in messages(transcript) if one.event == event]


def sample(transcript: str) -> str:
    """The first frame of each kind in a transcript, and the last frame; what is left out shows as an ellipsis."""
    frames = transcript.removesuffix("\n\n").split("\n\n")
    seen: set[str] = set()
    shown: list[str] = []
    for frame in frames:
        kind = "".join(re.findall(r'^event: .*|"(?:code|step)":"[^"]*"', frame, re.MULTILINE))
        if kind not in seen or frame is frames[-1]:
            seen.add(kind)
            shown.append(frame)
        elif shown[-1] != "…":
            shown.append("…")
    return "\n\n".join(shown)


def succeeded(run: Run) -> None:
    """The job succeeds."""
    if run.job["status"] != "succeeded":
        raise Wrong(f"it {run.job['status']}: {run.job['error_code']}: {run.job['error_message']}")


def keys_tell_all(run: Run) -> None:
    """Each artifact's key names its job, step, item, size and seed."""
    for one in run.artifacts:
        key = _KEY.fullmatch(one["s3_key"])
        if key is None:
            raise Wrong(f"{one['s3_key']} is no key of a PNG")
        expect("the key's folder", key["folder"], f"dreamforge/default/jobs/{run.job_id}/{one['step']}/")
        told = {name: int(key[name]) for name in ("item", "width", "height", "seed")}
        expect(
            one["s3_key"], told, {"item": one["item_index"]} | {name: one[name] for name in ("width", "height", "seed")}
        )


def downloads_are_whole(run: Run) -> None:
    """Each artifact's presigned URL gives its bytes: size, SHA-256 and the picture's own dimensions."""
    expect("the number of artifacts", len(run.artifacts), run.job["summary"]["count"] * len(run.job["steps"]))
    with tempfile.TemporaryDirectory() as folder:
        for one in run.artifacts:
            with Image.open(run.client.download(one, Path(folder))) as image:
                image.load()
                expect(f"the size of {one['s3_key']}", image.size, (one["width"], one["height"]))


def history_agrees(run: Run) -> None:
    """The stream brings every event of the history once, in order, with its version as id."""
    history = list(run.client.events(run.job_id))
    ids, newest = [], ""
    for message in run.messages:
        if message.last_event_id != newest:
            newest = message.last_event_id
            ids.append(int(newest))
    expect("the ids", ids, [one["version"] for one in history])
    expect("the versions", ids, list(range(1, len(ids) + 1)))


def stream_ends(run: Run) -> None:
    """The stream ends after job.finish with a last progress of 1.0, and a resume after it gets 204."""
    expect("the last event", run.data("log")[-1]["code"], "job.finish")
    expect("the last message", run.messages[-1].event, "progress")
    expect("the last progress", run.data("progress")[-1]["progress"], 1.0)
    path = f"/v1/jobs/{run.job_id}/progress/stream"
    with run.client.get_stream(path, last_event_id=run.messages[-1].last_event_id) as response:
        expect("the status of a resume", response.status_code, 204)


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)  # noqa: T201  # the report
