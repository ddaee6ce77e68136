"""`dreamforge jobs`, as a process, against a service as a process."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from artifacts.object_store import S3Config
from dreamforge.settings import unconfigured_environ
from tests import processes
from tests.conftest import Backends, fresh_database
from tests.http.conftest import running
from tests.kit import Api, Service, codes, eventually, roles_environ

SMALL = ["--prompt", "a knight's castle", "--size", "64", "--steps", "2"]
NOWHERE = "018f0000-0000-7000-8000-000000000001"


class Cli:
    """The command line, with nothing set but where the service is."""

    def __init__(self, base: str) -> None:
        self._environ = unconfigured_environ() | {"DF_API_BASE": base}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Begin a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "dreamforge", "--no-env-file", "jobs", *arguments],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """Run a command to its end, which must be this exit code; what it printed."""
        done = processes.run(["--no-env-file", "jobs", *arguments], self._environ, given=stdin)
        out, err = done.stdout, done.stderr
        assert done.returncode == code, f"exit {done.returncode}: {err}{out}"
        assert "Traceback" not in err
        assert (err != "" and out == "") if code > 1 else True
        return out

    def answer(self, *arguments: str, code: int = 0, stdin: str = "") -> Any:
        """What a command answers as JSON."""
        return msgspec.json.decode(self.run(*arguments, "--output", "json", code=code, stdin=stdin))

    def lines(self, *arguments: str) -> list[Any]:
        """What a command answers as a JSON object on each line."""
        return [msgspec.json.decode(line) for line in self.run(*arguments, "--output", "json").splitlines()]


@pytest.fixture(scope="module")
def cli(service: Service) -> Cli:
    """The command line, pointed at the session's service."""
    return Cli(service.url)


@pytest.fixture(scope="module")
def job_id(cli: Cli) -> str:
    """A chained job of two images that has succeeded."""
    made = cli.answer("create", *SMALL, "--count", "2", "--scale", "2", "--watch")
    assert made["status"] == "succeeded"
    return str(made["id"])


@pytest.fixture(scope="module")
def failing(backends: Backends, s3_config: S3Config) -> Iterator[Cli]:
    """Pointed at a service whose upscales fail once in each job."""
    with fresh_database(backends) as url:
        service = Service("up", roles_environ(url, s3_config, DF_FAKE_FAIL="upscale:0:1"))
        yield Cli(service.url)
        service.stop()


def test_create_takes_every_field(cli: Cli, api: Api) -> None:
    made = cli.answer(
        "create", *SMALL, "--negative-prompt", "fog", "--count", "2", "--guidance", "2.5", "--scheduler", "euler",
        "--seed", "7", "--format", "jpg", "--no-embed-metadata", "--engine", "sdxl", "--scale", "4", "--impl", "image",
        "--strict-scale", "--metadata", "project=harbour", "--metadata", "note=a=b",
    )  # fmt: skip
    job = api.job(made["id"])
    expected = {
        "prompt": "a knight's castle",
        "negative_prompt": "fog",
        "width": 64,
        "height": 64,
        "steps": 2,
        "count": 2,
        "guidance": 2.5,
        "scheduler": "euler",
        "seed": 7,
        "format": "jpg",
        "embed_metadata": False,
        "engine": "sdxl",
        "chain": {"upscale": {"scale": 4, "impl": "image", "strict_scale": True}},
    }
    assert job["params"].items() >= expected.items()
    assert job["metadata"] == {"project": "harbour", "note": "a=b"}


def test_create_waits_as_long_as_it_is_told(cli: Cli) -> None:
    """The answer then reports the end; as a table it is one sentence."""
    assert cli.answer("create", *SMALL, "--wait", "60")["status"] == "succeeded"
    assert cli.run("create", *SMALL, "--wait", "60").endswith(" is succeeded.\n")


def test_create_sends_a_whole_request(cli: Cli, api: Api, tmp_path: Path) -> None:
    """From a file, and from standard input."""
    generate = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2}
    body = msgspec.json.encode({"pipeline": [generate, {"type": "upscale", "scale": 2}]}).decode()
    (tmp_path / "request.json").write_text(body)
    for source in (str(tmp_path / "request.json"), "-"):
        made = cli.answer("create", "--file", source, stdin=body)
        assert [step["name"] for step in api.job(made["id"])["steps"]] == ["generate", "upscale"]
    cli.run("create", "--file", "-", stdin="{", code=2)


def test_an_idempotency_key_names_one_job(cli: Cli) -> None:
    """The same request again answers the same job; another one is rejected."""
    key = f"clé {uuid.uuid4()}"
    first, again = (cli.answer("create", *SMALL, "--idempotency-key", key) for _ in range(2))
    assert again["id"] == first["id"]
    cli.run("create", *SMALL, "--seed", "8", "--idempotency-key", key, code=5)


def test_show_tells_of_now_and_of_then(cli: Cli, api: Api, job_id: str) -> None:
    job = api.job(job_id)
    assert cli.answer("show", job_id) == job
    assert "2 of 2 images finished" in cli.run("show", job_id)
    assert cli.answer("show", job_id, "--as-of-version", "1")["status"] == "queued"
    assert cli.answer("show", job_id, "--as-of", api.history(job_id)[0]["ts"])["version"] == 1
    assert cli.answer("show", job_id, "--as-of", job["updated_at"]) == job
    cli.run("show", job_id, "--as-of", "yesterday", code=2)
    cli.run("show", job_id, "--as-of", "2001-01-01", code=4)


def test_watch_follows_to_the_end(cli: Cli, api: Api, job_id: str) -> None:
    assert cli.answer("watch", job_id) == api.job(job_id)
    assert "succeeded" in cli.run("watch", job_id)


async def test_list_pages_through_all(cli: Cli, api: Api, job_id: str) -> None:
    """The newest first; no more than are wanted, and all if so."""

    async def listed() -> bool:
        return job_id in {job["id"] for job in api.get("/v1/jobs", limit=200)["jobs"]}

    await eventually(listed, what="the job in the list")
    jobs = cli.answer("list", "--all")
    assert cli.answer("list", "--limit", "2") == jobs[:2]
    assert job_id in {job["id"] for job in jobs}
    assert jobs == sorted(jobs, key=lambda job: (job["created_at"], job["id"]), reverse=True)
    assert job_id in cli.run("list", "--all", "--status", "succeeded")
    assert {job["status"] for job in cli.answer("list", "--status", "succeeded")} == {"succeeded"}
    cli.run("list", "--status", "lost", code=2)


def test_logs_as_json_are_what_the_service_answers(cli: Cli, api: Api, job_id: str) -> None:
    def answered(**params: Any) -> str:
        return api.http.get(f"/v1/jobs/{job_id}/logs", params=params).text

    assert cli.run("logs", job_id, "--output", "json") == answered()
    assert cli.run("logs", job_id, "--output", "json", "--tail", "3") == answered(tail=3)
    since = api.history(job_id)[4]["ts"]
    assert cli.run("logs", job_id, "--output", "json", "--since", since) == answered(since_ts=since)
    texts = cli.run("logs", job_id).splitlines()
    assert len(texts) == len(answered().splitlines())
    assert texts[-1].split(maxsplit=1)[1].split() == ["info", "job.finish", "Job", "succeeded."]


def test_followed_logs_are_the_same_lines(cli: Cli, api: Api) -> None:
    """Given a job that runs, each of its lines comes once, as if it had been asked for afterwards."""
    made = cli.answer("create", *SMALL, "--count", "20", "--scale", "4")
    followed = cli.run("logs", made["id"], "--follow", "--output", "json")
    assert followed == api.http.get(f"/v1/jobs/{made['id']}/logs").text
    assert cli.run("logs", made["id"], "--follow", "--tail", "2", "--output", "json") == "".join(
        followed.splitlines(keepends=True)[-2:]
    )


def test_events_are_the_history(cli: Cli, api: Api, job_id: str) -> None:
    assert cli.lines("events", job_id) == api.history(job_id)
    assert "job.finish" in cli.run("events", job_id)


def test_the_whole_log_holds_every_history(cli: Cli, api: Api, job_id: str) -> None:
    """Each event with its stream and category; filtered if told."""
    history = [event | {"stream": job_id, "category": "job"} for event in api.history(job_id)]
    assert [event for event in cli.lines("events", "--all") if event["stream"] == job_id] == history
    chosen = cli.lines("events", "--all", "--codes", "job.created,job.finish", "--category", "job")
    assert {event["code"] for event in chosen} == {"job.created", "job.finish"}
    assert f"job {job_id} " in cli.run("events", "--all")
    cli.run("events", "--all", "--codes", "nonsense", code=2)


def test_the_whole_log_is_followed_as_it_grows(cli: Cli) -> None:
    """What is there already comes first; a job that is made meanwhile comes then."""
    with cli.start("events", "--all", "--follow", "--codes", "job.created", "--output", "json") as following:
        assert following.stdout is not None
        first = msgspec.json.decode(following.stdout.readline())
        assert first["code"] == "job.created"
        made = cli.answer("create", *SMALL)["id"]
        assert any(msgspec.json.decode(line)["stream"] == made for line in following.stdout)
        following.terminate()


async def test_cancel_stops_a_job(cli: Cli, api: Api) -> None:
    """And says so again when it is told twice."""
    creating = cli.start("create", "--prompt", "p", "--size", "1024", "--count", "90", "--output", "json")
    job_id = await eventually(lambda: _unfinished(api, count=90), what="the job in the list")
    assert cli.answer("cancel", job_id, "--wait")["status"] == "cancelled"
    assert cli.run("cancel", job_id) == f"Job {job_id} is cancelled.\n"
    out, _ = creating.communicate(timeout=60)
    assert msgspec.json.decode(out)["id"] == job_id
    cli.run("watch", job_id, code=1)


async def _unfinished(api: Api, count: int) -> str:
    jobs = api.get("/v1/jobs", limit=200)["jobs"]
    open_ones = [job for job in jobs if job["summary"]["count"] == count and job["status"] in {"queued", "running"}]
    return str(open_ones[0]["id"]) if open_ones else ""


def test_a_failed_job_is_retried(failing: Cli) -> None:
    """A watch exits 1 when it fails and 0 when it succeeds."""
    failed = failing.answer("create", *SMALL, "--scale", "2", "--watch", code=1)
    assert (failed["status"], failed["error_code"]) == ("failed", "provider_error")
    assert failing.answer("retry", failed["id"], "--watch")["status"] == "succeeded"
    history = failing.lines("events", failed["id"])
    assert codes(history).count("job.finish") == 2


async def test_all_that_failed_is_driven_once_more(failing: Cli) -> None:
    """Given failed jobs, then those of the time asked for are listed, retried, and not retried again."""
    jobs = [failing.answer("create", *SMALL, "--scale", "2", "--watch", code=1) for _ in range(2)]

    async def listed() -> bool:
        return {job["id"] for job in failing.answer("list", "--status", "failed")} == {job["id"] for job in jobs}

    await eventually(listed, what="the list of both")
    assert failing.answer("retry", "--failed", "--since", "2999-01-01") == []
    assert len(failing.answer("retry", "--failed", "--since", "1h", "--dry-run")) == 2
    since = max(job["updated_at"] for job in jobs)
    assert len(failing.answer("retry", "--failed", "--since", since, "--dry-run")) == 1
    assert {job["id"] for job in failing.answer("retry", "--failed")} == {job["id"] for job in jobs}
    for job in jobs:
        assert failing.answer("watch", job["id"])["status"] == "succeeded"
        assert codes(failing.lines("events", job["id"])).count("job.retry_requested") == 1


async def test_a_bulk_retry_waits_where_the_rate_is_used_up(db_url: str, s3_config: S3Config) -> None:
    """Given a tenant's rate that is far below the number of failed jobs, then all of them are retried all the same."""
    with running("up", db_url, s3_config, DF_FAKE_FAIL="generate", DF_MAX_ATTEMPTS="1") as service:
        cli = Cli(service.url)
        for _ in range(3):
            cli.answer("create", *SMALL, "--watch", code=1)

        async def listed() -> bool:
            return len(cli.answer("list", "--status", "failed")) == 3

        await eventually(listed, what="the list of all three")
    with running("api", db_url, s3_config, DF_TENANT_RATE="1") as service:
        assert len(Cli(service.url).answer("retry", "--failed")) == 3


@pytest.mark.parametrize(
    "wrong", [(), ("x", "--failed"), ("--failed", "--watch"), ("x", "--since", "1h"), ("--failed", "--since", "soon")]
)
def test_a_retry_names_one_job_or_all_that_failed(cli: Cli, wrong: tuple[str, ...]) -> None:
    cli.run("retry", *wrong, code=2)


def test_what_a_jobs_state_forbids_exits_5(cli: Cli, job_id: str) -> None:
    cli.run("cancel", job_id, code=5)
    cli.run("retry", job_id, code=5)


def test_artifacts_are_listed_and_downloaded(cli: Cli, api: Api, job_id: str, tmp_path: Path) -> None:
    listed = cli.answer("artifacts", job_id, "--download", str(tmp_path))
    keys = [one["s3_key"] for one in api.artifacts(job_id)]
    assert [one["s3_key"] for one in listed] == keys
    found = {f"{path.parent.name}/{path.name}" for path in tmp_path.rglob("*.png")}
    assert found == {"/".join(key.split("/")[-2:]) for key in keys}
    assert keys[-1] in cli.run("artifacts", job_id)


@pytest.mark.parametrize("command", ["show", "watch", "logs", "events", "cancel", "retry", "artifacts"])
def test_an_unknown_job_exits_4(cli: Cli, command: str) -> None:
    cli.run(command, NOWHERE, code=4)
    cli.run(command, "no-uuid", "--output", "json", code=4)


@pytest.mark.parametrize(
    "arguments",
    [["create", "--prompt", "x", "--size", "8"], ["create"], ["logs", NOWHERE, "--tail", "0"], ["list", "-x"]],
)
def test_a_wrong_input_exits_2(cli: Cli, arguments: list[str]) -> None:
    """Whether the service rejects it, or the command line does before."""
    cli.run(*arguments, code=2)


@pytest.mark.parametrize("arguments", [["list"], ["show", NOWHERE], ["events", "--all", "--follow"]])
def test_a_service_that_is_not_there_exits_3(arguments: list[str]) -> None:
    Cli("http://127.0.0.1:9").run(*arguments, code=3)
