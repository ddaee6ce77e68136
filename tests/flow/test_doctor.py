"""`dreamforge doctor` finds what is wrong, and says what to do."""

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from artifacts.object_store import S3Config
from eventstore.ids import new_id
from eventstore.log import Append, Batch
from tests.kit import History, Store, connect, dreamforge, event, roles_environ

pytestmark = pytest.mark.usefixtures("durable")


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
    assert len(found) == 12
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
    created = Append(stream=job.job_id, category="job", expected=0, events=(event(job.created),))
    await store.log.subscribe("orchestrator")
    await store.log.commit(Batch(appends=[created]))
    connection = await connect(db_url)
    await connection.execute("update eventstore.checkpoints set position = 1 where partition = $1", own)
    await store.log.subscribe("readmodel")
    await connection.execute("alter table eventstore.envelopes disable trigger user")
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


class Late(BaseHTTPRequestHandler):
    """A store an hour late, which rejects everything for that, as S3 does from 15 minutes on."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = answer  # noqa: N815  # names of the base class

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((time.time() if timestamp is None else timestamp) - 3600)

    def log_message(self, *_: object) -> None:
        """Suppress the server's access log."""


def test_a_store_whose_clock_is_late_is_warned_of(db_url: str, s3_config: S3Config) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Late)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        found = examined(roles_environ(db_url, s3_config) | {"DF_S3_ENDPOINT": endpoint}, 1)["object store's clock"]
    finally:
        server.shutdown()
        server.server_close()
    assert found["state"] == "warning"
    assert re.search(r"are (3600|3599)\.\d s apart", found["found"])


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
