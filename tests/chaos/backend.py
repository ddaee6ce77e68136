"""A PostgreSQL and an object store for chaos tests, which can be stopped and restarted."""

import os
import signal
import time
from pathlib import Path

from artifacts.object_store import ObjectStore, S3Config
from dreamforge.backends import replace_url_login
from dreamforge.embedded import EmbeddedPostgres, EmbeddedSeaweed
from dreamforge.embedded.processes import wait_until
from dreamforge.schema import install
from eventstore import schema
from eventstore.database import Database
from tests.kit import SERVICE_LOGIN
from tests.standby import Pair

STRANGER_LOGIN = ("stranger", "stranger")
"""User and password of a login that may connect to the service's database, without other rights."""
_ENDED_S = 30.0


class Backend:
    """Both servers, with their data in a home. The constructor starts them. url: of the database's owner.

    pair: the database and its synchronous standby, if it is to have one.
    """

    def __init__(self, home: Path, *, standby: bool = False) -> None:
        self._home = home
        self.pair = Pair(home) if standby else None
        self._postgres_home = home if self.pair is None else self.pair.primary_home
        self._postgres = EmbeddedPostgres.start(home) if self.pair is None else self.pair.running
        try:
            self._seaweed = EmbeddedSeaweed.start(home)
        except BaseException:
            self._stop_postgres()
            raise
        self.url = self._postgres.url
        self.stranger_url = replace_url_login(self.url, *STRANGER_LOGIN)
        self.s3 = S3Config(
            endpoint=self._seaweed.endpoint,
            access_key=self._seaweed.access_key,
            secret_key=self._seaweed.secret_key,
            bucket="chaos",
        )

    async def prepare(self) -> None:
        """Install the schema, create the logins and the bucket."""
        database = Database(self.url, time_limited=False)
        await install(database)
        await schema.ensure_service_login(database, *SERVICE_LOGIN)
        async with database.connection() as connection, connection.transaction():
            # One round instead of 4,096: a stranger who takes hundreds of connections shall not take all the time, too.
            await connection.execute("set local scram_iterations = 1")
            await connection.execute("create role {} login password '{}'".format(*STRANGER_LOGIN))
        await database.close()
        store = ObjectStore(self.s3)
        await store.ensure_bucket()
        await store.close()
        if self.pair is not None:
            await self.pair.demand()

    def restart_postgres(self) -> None:
        """Shut PostgreSQL down immediately, as in a crash, and start it on the same port."""
        crashed = self._postgres
        os.kill(crashed.pid, signal.SIGQUIT)
        assert wait_until(lambda: not crashed.server.runs(), _ENDED_S), "PostgreSQL survives an immediate shutdown"
        self._postgres = EmbeddedPostgres.start(self._postgres_home)
        if self.pair is not None:
            self.pair.primary = self._postgres
        assert self._postgres.url == self.url, "PostgreSQL's port was taken while it was away"

    def restart_store(self, away_s: float) -> None:
        """Kill the object store, wait some seconds, and start it on the same port."""
        killed = self._seaweed
        os.kill(killed.pid, signal.SIGKILL)
        assert wait_until(lambda: not killed.server.runs(), _ENDED_S), "the object store survives SIGKILL"
        time.sleep(away_s)
        self._seaweed = EmbeddedSeaweed.start(self._home)
        assert self._seaweed.endpoint == self.s3.endpoint, "the object store's port was taken while it was away"

    def stop(self) -> None:
        """Stop both servers. A second call does nothing."""
        self._seaweed.stop()
        self._stop_postgres()

    def _stop_postgres(self) -> None:
        if self.pair is None:
            self._postgres.stop()
        else:
            self.pair.stop()
