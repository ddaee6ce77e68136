"""A task of the process that fails is seen, and starts again: nothing is 503 without end behind a ready /readyz."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from artifacts.object_store import S3Config
from tests.kit import Api, Service, project_root, roles_environ

FAULTS = '''
"""Lets the methods named on the lines of a file fail once each, as a fault that nobody foresaw would."""
import os
from pathlib import Path

from eventstore.committer import Committer
from eventstore.tailer import Tailer
from runners.consumer import Consumer

FILE = Path(os.environ["FAULTS"])


def breakable(kind, name):
    method = getattr(kind, name)

    def wrapped(self, *arguments):
        if FILE.exists() and name in (asked := FILE.read_text().split()):
            asked.remove(name)
            FILE.write_text(" ".join(asked))
            raise RuntimeError(f"nobody foresaw that {name} fails")
        return method(self, *arguments)

    setattr(kind, name, wrapped)


breakable(Committer, "_next_batch")
breakable(Tailer, "_read_new_events")
breakable(Consumer, "_extend_leases")
'''

JOB = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2}


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """The file that names the methods which shall fail once."""
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    return tmp_path / "faults"


@pytest.fixture
def up(db_url: str, s3_config: S3Config, faults: Path) -> Iterator[Service]:
    """A whole service whose tasks can be made to fail."""
    # With the code under test before an installed one: this module is imported before the current folder counts.
    path = os.pathsep.join([str(faults.parent), str(project_root())])
    more = {"PYTHONPATH": path, "FAULTS": str(faults), "DF_LEASE_S": "6"}
    service = Service("up", roles_environ(db_url, s3_config, **more))
    yield service
    service.stop()


def checks(service: Service) -> dict[str, str]:
    """What /readyz says of each check."""
    found: dict[str, str] = httpx.get(f"{service.url}/readyz", trust_env=False).json()["checks"]
    return found


def test_a_committer_that_fails_starts_again(up: Service, faults: Path) -> None:
    """Given a fault in the committer, then who waits hears 503, log and /readyz tell, and the next write succeeds."""
    api = Api(up.url)
    faults.write_text("_next_batch")
    assert api.post(JOB).status_code == 503
    assert "_next_batch" in checks(up)["committer"]
    assert any('"task failed' in line and "_next_batch" in line for line in up.lines)
    assert api.post(JOB).status_code == 202
    api.close()


def test_a_tailer_that_fails_starts_again(up: Service, faults: Path) -> None:
    """Given a fault in the tailer while a job is followed, then the stream still comes to the job's end."""
    api = Api(up.url)
    faults.write_text("_read_new_events")
    job = api.create()
    assert "job.finish" in [one.data["code"] for one in api.stream(job) if one.event == "log"]
    assert "_read_new_events" in checks(up)["tailer"]
    api.close()


def test_a_heartbeat_that_fails_starts_again(up: Service, faults: Path) -> None:
    """Given a fault in the heartbeat, then /readyz tells, and leases are kept: the job is run once."""
    api = Api(up.url)
    # Before its first claim a runner extends what it holds itself; a fault there ends the process, as it should.
    api.finished(api.create())
    faults.write_text("_extend_leases")
    deadline = time.monotonic() + 60
    while "_extend_leases" not in checks(up)["heartbeat"]:
        assert time.monotonic() < deadline, up.output
        time.sleep(0.1)
    assert api.finished(api.create(count=3))["status"] == "succeeded"
    api.close()
