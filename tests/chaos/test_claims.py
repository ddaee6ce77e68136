"""A claim that was answered stands, whatever becomes of the database in that moment."""

import os
import signal
from pathlib import Path

from dreamforge import schema
from dreamforge.embedded import EmbeddedPostgres
from eventstore.ids import new_id
from eventstore.log import Batch, Send
from eventstore.outbox import Outbox
from orchestrator import step_command
from orchestrator.step_command import StepCommand
from tests.kit import Store, some_append


async def test_a_crash_of_the_database_forgets_no_claim(tmp_path: Path) -> None:
    """Given a claim whose answer came, and the server ended at once, then it shows the command to nobody else.

    Else the next claim would bear the same token, and two runners would hold one command.
    """
    for _ in range(3):
        server = EmbeddedPostgres.start(tmp_path)
        store = Store(server.url, listen=False)
        await schema.install(store.database)
        append = some_append()
        command = StepCommand(job_id=append.stream, step_id=new_id(), step="generate", version=1)
        await store.log.commit(
            Batch(appends=[append], sends=[Send(stream=append.stream, queue="generate", message=command)])
        )
        [claim] = await Outbox(store.database, ["generate"], step_command.decode).claim(1, 60)
        os.kill(server.pid, signal.SIGQUIT)
        await store.close()
        server.stop()

        server = EmbeddedPostgres.start(tmp_path)
        store = Store(server.url, listen=False)
        outbox = Outbox(store.database, ["generate"], step_command.decode)
        assert await outbox.claim(1, 60) == []
        assert await outbox.extend([claim], 60) == []
        await store.database.execute_once("select eventstore.purge()")
        await store.close()
        server.stop()
