"""`dreamforge up` and the command line: starting, stopping, rejecting, and finding everything again."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from artifacts.object_store import S3Config
from tests.kit import Api, Service, dreamforge, eventually, roles_environ


def environ(home: Path) -> dict[str, str]:
    """An embedded stack in a home."""
    return {"DF_HOME": str(home), "DF_FAKE_RUNNER": "1", "DF_PORT": "0"}


def of_home(home: Path) -> list[psutil.Process]:
    """Every process that belongs to a home."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(home) in " ".join(process.cmdline()) or process.cwd().startswith(str(home)):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty home; nothing of it runs afterwards."""
    path = tmp_path / "home"
    yield path
    for process in of_home(path):
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_everything_within_seconds_and_the_next_start_finds_all_again(
    home: Path, number: signal.Signals
) -> None:
    """Given a finished and a running job, when stopped and started, then the one is there and the other goes on."""
    service = Service("up", environ(home))
    api = Api(service.url)
    done = api.finished(api.create(count=2))
    running = api.create(count=8, width=1024, height=1024)
    before = [(one["s3_key"], one["sha256"]) for one in api.artifacts(done["id"])]
    api.close()
    began = time.monotonic()
    service.process.send_signal(number)
    assert service.stop() == 0
    assert time.monotonic() - began < 20
    assert of_home(home) == []

    service = Service("up", environ(home))
    api = Api(service.url)
    assert api.job(done["id"]) == done
    artifacts = api.artifacts(done["id"])
    assert [(one["s3_key"], one["sha256"]) for one in artifacts] == before
    for one in artifacts:
        assert len(httpx.get(one["url"], trust_env=False).raise_for_status().content) == one["bytes"]
    assert api.finished(running)["status"] == "succeeded"
    api.close()
    service.stop()


async def test_the_start_ends_by_naming_the_page_to_open(home: Path) -> None:
    service = Service("up", environ(home))

    async def page() -> str | None:
        told = [json.loads(line) for line in service.lines]
        events = [one["event"] for one in told]
        if "open this page in a browser" not in events:
            return None
        assert events.index("open this page in a browser") > events.index("running") > events.index("listening")
        found: str = told[events.index("open this page in a browser")]["page"]
        return found

    found = await eventually(page, what="the page")
    assert found == f"{service.url}/"
    service.stop()


@pytest.mark.parametrize(("host", "answering"), [("localhost", ["127.0.0.1", "[::1]"]), ("::1", ["[::1]"])])
def test_a_loopback_name_is_served_on_all_of_its_addresses(
    db_url: str, s3_config: S3Config, host: str, answering: list[str]
) -> None:
    """A client takes either address of `localhost`; whoever names one address gets that one."""
    service = Service("api", roles_environ(db_url, s3_config, DF_HOST=host))
    port = httpx.URL(service.url).port
    for address in ("127.0.0.1", "[::1]"):
        try:
            found = httpx.get(f"http://{address}:{port}/healthz", trust_env=False).status_code == 200
        except httpx.ConnectError:
            found = False
        assert found is (address in answering)
    service.stop()


def test_everything_listens_on_loopback_only(home: Path) -> None:
    """API, PostgreSQL and every port of SeaweedFS."""
    service = Service("up", environ(home))
    assert service.url.startswith("http://127.0.0.1:")
    owners = [psutil.Process(service.process.pid), *of_home(home)]
    addresses = {
        connection.laddr.ip
        for process in owners
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}
    service.stop()


def test_a_stream_ends_cleanly_when_the_server_stops(home: Path) -> None:
    """Given a client on a live stream, when the server stops, then the stream ends and the stop is not held up."""
    service = Service("up", environ(home))
    api = Api(service.url)
    job_id = api.create(count=30, width=1024, height=1024)
    with api.http.stream("GET", f"/v1/jobs/{job_id}/progress/stream") as answer:
        chunks = answer.iter_bytes()
        next(chunks)
        service.process.send_signal(signal.SIGTERM)
        for _ in chunks:
            pass
    assert service.stop() == 0
    api.close()


def test_a_second_start_on_one_home_is_rejected(home: Path) -> None:
    """It names the process that has it, and leaves that one alone."""
    service = Service("up", environ(home))
    assert service.url
    rejected = dreamforge("up", "--port", "0", DF_HOME=str(home), DF_FAKE_RUNNER="1")
    assert rejected.returncode == 1
    assert str(service.process.pid) in rejected.stderr
    assert "Traceback" not in rejected.stderr
    assert httpx.get(f"{service.url}/readyz", trust_env=False).status_code == 200
    service.stop()


def test_a_taken_port_is_said_to_be_taken(db_url: str, s3_config: S3Config) -> None:
    """The message says how to choose another."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        rejected = dreamforge("api", **(roles_environ(db_url, s3_config) | {"DF_PORT": port}))
    assert rejected.returncode == 1
    assert port in rejected.stderr
    assert "--port" in rejected.stderr
    assert "Traceback" not in rejected.stderr


@pytest.mark.parametrize("role", ["api", "orchestrator", "projector", "runner"])
def test_a_role_alone_wants_a_database(role: str) -> None:
    """It brings none of its own."""
    rejected = dreamforge(role)
    assert rejected.returncode != 0
    assert "DF_" in rejected.stderr
    assert "Traceback" not in rejected.stderr


def test_a_database_that_rejects_us_is_said_to(db_url: str, s3_config: S3Config) -> None:
    """A wrong name or password is not worth waiting for."""
    for wrong in (db_url.replace("/df_", "/nowhere_"), db_url.replace("dreamforge:", "dreamforge:x")):
        rejected = dreamforge("orchestrator", **roles_environ(wrong, s3_config) | {"DF_DB_URL": wrong})
        assert rejected.returncode == 1
        assert "DF_DB_URL" in rejected.stderr
        assert "Traceback" not in rejected.stderr


def test_schema_install_is_safe_to_run_twice(empty_url: str, s3_config: S3Config) -> None:
    """And until it was run, a role says that it is missing."""
    service = roles_environ(empty_url, s3_config)
    given = service | {"DF_DB_URL": empty_url}
    missing = dreamforge("orchestrator", **given)
    assert missing.returncode == 1
    assert "dreamforge schema install" in missing.stderr
    denied = dreamforge("schema", "install", **service)
    assert denied.returncode == 1
    assert "owner" in denied.stderr
    assert "Traceback" not in denied.stderr
    assert dreamforge("schema", "install", **given).returncode == 0
    assert dreamforge("schema", "install", **given).returncode == 0


def test_the_command_line_runs_a_job_from_post_to_files(service: Service, tmp_path: Path) -> None:
    """Jobs create, watch, show and artifacts, as a script would use them."""
    given = {"DF_API_BASE": service.url}
    made = dreamforge(
        "jobs", "create", "--prompt", "a knight's castle", "--size", "64", "--count", "2", "--scale", "2",
        "--output", "json", **given,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    job_id = json.loads(made.stdout)["id"]
    watched = dreamforge("jobs", "watch", job_id, **given)
    assert watched.returncode == 0, watched.stderr
    shown = dreamforge("jobs", "show", job_id, "--output", "json", **given)
    assert json.loads(shown.stdout)["status"] == "succeeded"
    fetched = dreamforge("jobs", "artifacts", job_id, "--download", str(tmp_path / "images"), **given)
    assert fetched.returncode == 0, fetched.stderr
    assert len(list((tmp_path / "images").rglob("*.png"))) == 4
    assert dreamforge("jobs", "show", "018f0000-0000-7000-8000-000000000001", **given).returncode == 4
    assert dreamforge("jobs", "create", "--prompt", "x", "--size", "8", **given).returncode == 2
    assert dreamforge("jobs", "show", job_id, DF_API_BASE="http://127.0.0.1:9").returncode == 3
