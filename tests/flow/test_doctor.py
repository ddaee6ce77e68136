"""`dreamforge doctor` finds what is wrong, and says what to do."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from eventstore.ids import new_id
from eventstore.log import Append, Batch
from runners.objects import S3Config
from tests.kit import History, Store, connect, dreamforge, event, roles_environ


def examined(environ: dict[str, str], code: int = 0) -> dict[str, Any]:
    """The findings by check; the command must exit so."""
    done = dreamforge("doctor", "--json", **environ)
    assert done.returncode == code, done.stdout + done.stderr
    return {one["check"]: one for one in json.loads(done.stdout)}


def test_a_sound_service_is_well(db_url: str, s3_config: S3Config) -> None:
    """Given a fresh database and a store, then every check is ok; and people get a table."""
    environ = roles_environ(db_url, s3_config)
    found = examined(environ)
    assert {one["state"] for one in found.values()} == {"ok"}
    assert len(found) == 11
    shown = dreamforge("doctor", **environ)
    assert "object store" in shown.stdout


def test_the_owners_login_is_warned_of(db_url: str, s3_config: S3Config) -> None:
    found = examined(roles_environ(db_url, s3_config) | {"DF_DB_URL": db_url})
    assert found["login"]["state"] == "warning"
    assert "dreamforge_service" in found["login"]["advice"]


async def test_a_lost_command_and_a_silent_projector_are_bad(db_url: str, s3_config: S3Config) -> None:
    """Given a job whose command is gone, and a checkpoint that has not moved for long, then both are named."""
    store = Store(db_url, listen=False)
    job = History()
    own = job.job_id.bytes[-1] & 7
    created = Append(stream=job.job_id, expected=0, events=(event(job.created),))
    await store.log.subscribe("orchestrator")
    await store.log.commit(Batch(appends=[created]))
    connection = await connect(db_url)
    await connection.execute("update eventstore.checkpoints set position = 1 where partition = $1", own)
    await store.log.subscribe("readmodel")
    await connection.execute("alter table eventstore.events disable trigger user")
    await connection.execute("update eventstore.events set recorded_at = recorded_at - interval '10 minutes'")
    await connection.execute("select pgmq.send('generate', $1::jsonb)", json.dumps({"id": str(new_id())}))
    await connection.execute("select pgmq.archive('generate', 1::bigint)")
    await connection.close()
    await store.close()
    found = examined(roles_environ(db_url, s3_config), 1)
    assert (found["queues"]["state"], found["queues"]["advice"]) == ("bad", "Run `dreamforge outbox rebuild`.")
    assert found["lag"]["state"] == "bad"
    assert "readmodel" in found["lag"]["found"]
    assert found["unreadable commands"]["state"] == "warning"


BROKEN: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "object store": lambda environ: environ | {"DF_S3_ENDPOINT": "http://127.0.0.1:9"},
    "database": lambda environ: environ | {"DF_DB_URL": "postgresql://nobody@127.0.0.1:9/nothing"},
}


@pytest.mark.parametrize("check", BROKEN)
def test_what_is_away_is_told(db_url: str, s3_config: S3Config, check: str) -> None:
    """And the rest is looked at all the same."""
    found = examined(BROKEN[check](roles_environ(db_url, s3_config)), 1)
    assert found[check]["state"] == "bad"
    assert found["database" if check == "object store" else "object store"]["state"] == "ok"
