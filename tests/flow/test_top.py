"""An operator watches the service live: in the terminal, once, and by a script."""

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from artifacts.object_store import S3Config
from dreamforge.operations.snapshot import Snapshot
from dreamforge.operations.snapshot_reader import SnapshotReader
from eventstore.log import Append, Batch, Send
from eventstore.outbox import Outbox
from orchestrator import step_command
from orchestrator.events import JobFinish, Meta
from orchestrator.step_command import StepCommand
from tests.conftest import Backends, execute
from tests.http.conftest import consumer, running
from tests.kit import History, Store, dreamforge, event, roles_environ

ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"
"""What a terminal is told when a full-screen view begins and ends."""
SOUND = "\x1b[H\x1b[1mDream Forge"
"""The top left of a picture that no trouble stands above."""


class Terminal:
    """`dreamforge top` in a terminal of its own."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._own, theirs = pty.openpty()
        outside = {name: value for name, value in os.environ.items() if not name.startswith("DF_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dreamforge", "--no-env-file", "top"],
            env=outside | environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def read_until(self, text: str) -> None:
        """Read what is drawn until it holds a text."""
        drawn = ""
        deadline = time.monotonic() + 60
        while text not in drawn:
            assert time.monotonic() < deadline, f"{text!r} is not drawn: {drawn!r}"
            assert select.select([self._own], [], [], 60)[0], f"{text!r} is not drawn: {drawn!r}"
            drawn += os.read(self._own, 65536).decode(errors="replace")

    def close(self) -> None:
        """Take the terminal away."""
        self.process.kill()
        self.process.wait(10)
        os.close(self._own)


@contextmanager
def terminal(environ: dict[str, str]) -> Iterator[Terminal]:
    """The live view for as long as the block."""
    opened = Terminal(environ)
    try:
        yield opened
    finally:
        opened.close()


def top(environ: dict[str, str]) -> Any:
    """The one picture that `dreamforge top` answers a script."""
    done = dreamforge("top", "--once", "--json", **environ)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    return json.loads(line)


async def commit(store: Store, job: History, *, sends: tuple[Send, ...] = (), actor: str | None = None) -> None:
    """Write a job's whole history as an actor would have."""
    events = tuple(event(one.body, meta=Meta(actor=actor)) for one in job.events if one.body is not None)
    await store.log.commit(
        Batch(appends=[Append(stream=job.job_id, category="job", expected=0, events=events)], sends=sends)
    )


def command(job: History) -> Send:
    """The command of a job's first step."""
    step_id = job.step_id("generate")
    wanted = StepCommand(job_id=job.job_id, step_id=step_id, step="generate", version=1)
    return Send(stream=job.job_id, queue="generate", message=wanted)


def counts(picture: Snapshot) -> dict[str, int]:
    """How often each rated thing happened in the window."""
    return {name: rate.count for name, rate in picture.rates.items()}


def test_a_working_service_is_seen_at_work(db_url: str, s3_config: S3Config) -> None:
    """Given two finished jobs, then all that became of them is counted, and the runner is named."""
    environ = roles_environ(db_url, s3_config)
    with running("up", db_url, s3_config) as service, consumer(service) as api:
        for job in [api.create(count=2), api.create(scale=None)]:
            api.finished(job)
        found = top(environ)
        rates = {name: rate["count"] for name, rate in found["rates"].items()}
        assert rates == {
            "events": len(api.get("/v1/events")["events"]),
            "jobs_created": 2,
            "jobs_ended": 2,
            "images": 5,
        }
        assert found["rates"]["events"]["now"] is not None
        assert found["steps"] == {"succeeded": 3, "retried": 0, "failed": 0}
        [runner] = found["runners"]
        assert runner["runner"].endswith(f"-{service.process.pid}")
        assert (runner["running"], runner["images"]) == (0, 5)
        assert {one["queue"]: one["visible"] for one in found["queues"]} == {"generate": 0, "upscale": 0}
        assert {one["projection"] for one in found["projections"]} == {"orchestrator", "readmodel"}


async def test_a_waiting_and_a_running_step_are_told_apart(store: Store) -> None:
    """Given three commands, one of them claimed and begun, another claimed and handed back, then one step runs."""
    waiting, working, deferred = (History(scale=None) for _ in range(3))
    await store.log.subscribe("readmodel")
    await commit(store, working.started("generate").wrote("generate", 0), sends=(command(working),), actor="painter")
    await commit(store, deferred.started("generate").finished("generate", "failed"), sends=(command(deferred),))
    await Outbox(store.database, ["generate"], step_command.decode).claim(2, 60)
    await commit(store, waiting, sends=(command(waiting),))
    watch = SnapshotReader(store.database)
    found = await watch.next_snapshot()
    generate, upscale = found.queues
    assert (generate.visible, generate.hidden) == (1, 2)
    assert generate.oldest_s is not None
    assert (upscale.visible, upscale.hidden, upscale.oldest_s) == (0, 0, None)
    assert {one.runner: (one.running, one.images) for one in found.runners} == {"painter": (1, 1), "r": (0, 0)}
    [lag] = found.projections
    assert lag.lag == counts(found)["events"] == 7
    assert counts(await watch.next_snapshot()) == counts(found), "nothing is counted twice"


async def test_jobs_are_counted_whosever_they_are(store: Store) -> None:
    """Given rows of two tenants and a failure in the log, then open ones are counted, and the failed one."""
    insert = """
        insert into readmodel.jobs
        select gen_random_uuid(), tenant, 'generate', status, now(), now(), 1, 1, '{}', '{}'
        from unnest(array['a', 'b', 'b']) tenant, unnest(array['queued', 'running', 'failed', 'succeeded']) status"""
    await store.database.execute_once(insert)
    await commit(store, History().started("generate").finished("generate", "failed").add(JobFinish(status="failed")))
    found = await SnapshotReader(store.database).next_snapshot()
    assert (found.jobs.queued, found.jobs.running, found.jobs.failed) == (3, 3, 1)
    assert found.steps.failed == 1


async def test_a_command_that_nobody_can_read_does_not_stop_the_view(store: Store) -> None:
    await store.database.execute_once("select pgmq.send('generate', $1::jsonb, 60)", json.dumps({"job_id": "7"}))
    found = await SnapshotReader(store.database).next_snapshot()
    assert (found.queues[0].hidden, found.runners) == (1, [])


def test_where_nobody_watches_one_table_is_printed(db_url: str, s3_config: S3Config) -> None:
    done = dreamforge("top", **roles_environ(db_url, s3_config))
    assert done.returncode == 0, done.stderr
    for heading in ("RATES", "JOBS", "QUEUE", "PROJECTION", "RUNNER"):
        assert done.stdout.count(heading) == 1
    assert ENTERED not in done.stdout


def test_a_script_gets_a_line_a_refresh(db_url: str, s3_config: S3Config) -> None:
    """And ends it as a person would."""
    environ = roles_environ(db_url, s3_config)
    outside = {name: value for name, value in os.environ.items() if not name.startswith("DF_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "dreamforge", "--no-env-file", "top", "--json"],
        env=outside | environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        moments = [json.loads(process.stdout.readline())["at"] for _ in range(2)]
        assert moments[0] < moments[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_the_terminal_is_given_back(db_url: str, s3_config: S3Config, ended_by: signal.Signals) -> None:
    with terminal(roles_environ(db_url, s3_config)) as view:
        view.read_until(ENTERED)
        view.read_until("RUNNER")
        view.process.send_signal(ended_by)
        view.read_until(LEFT)
        assert view.process.wait(30) == 0


def test_the_view_outlives_its_database(db_url: str, backends: Backends, s3_config: S3Config) -> None:
    """Given a database that goes away and comes back, then a line says so meanwhile, and the view goes on."""
    name = urlsplit(db_url).path[1:]
    cut = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
    with terminal(roles_environ(db_url, s3_config)) as view:
        view.read_until("RUNNER")
        asyncio.run(execute(backends.db_url, cut, f"alter database {name} rename to {name}_away"))
        view.read_until("No answer: ")
        asyncio.run(execute(backends.db_url, f"alter database {name}_away rename to {name}"))
        view.read_until(SOUND)
        view.process.send_signal(signal.SIGINT)
        assert view.process.wait(30) == 0


def test_a_database_that_is_not_there_is_told(db_url: str, s3_config: S3Config) -> None:
    away = roles_environ(db_url, s3_config) | {"DF_DB_URL": "postgresql://nobody@127.0.0.1:9/nothing"}
    done = dreamforge("top", "--once", **away)
    assert done.returncode == 3
    assert "PostgreSQL" in done.stderr
