"""Two PostgreSQL servers: a primary, and a standby that comes, goes and takes over.

start ─▶ demand ─▶ lose ─▶ regain ─▶ … ─▶ fail_over
"""

import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from dreamforge.embedded import EmbeddedPostgres
from dreamforge.embedded.postgres import _find_programs_folder
from tests.kit import connect, eventually

_STANDBY = "standby"


class Pair:
    """A primary and its streaming standby, each in its own folder. `stop` ends both."""

    def __init__(self, folder: Path) -> None:
        self._home = folder / _STANDBY
        self.primary_home = folder / "primary"
        self.primary: EmbeddedPostgres | None = EmbeddedPostgres.start(self.primary_home)
        self.standby: EmbeddedPostgres | None = None
        self.url = self.primary.url
        try:
            self._copy(self.primary_home / "postgres" / "password")
            self.regain()
        except BaseException:
            self.stop()
            raise

    def _copy(self, password: Path) -> None:
        """Make a base backup. A replication slot keeps the log that the standby has not received."""
        path = self._home / "postgres"
        path.mkdir(parents=True)
        shutil.copy2(password, path / "password")
        parts = urlsplit(self.url)
        conninfo = (
            f"host={parts.hostname} port={parts.port} user={parts.username} password={parts.password} "
            f"application_name={_STANDBY}"
        )
        command: list[str | Path] = [
            _find_programs_folder() / "pg_basebackup",
            "-d",
            conninfo,
            "-D",
            path / "data",
            "-R",
        ]
        subprocess.run([*command, "-c", "fast", "-C", "-S", _STANDBY], check=True, capture_output=True)

    @property
    def running(self) -> EmbeddedPostgres:
        """The primary, which must still run."""
        assert self.primary is not None
        return self.primary

    async def demand(self, *, demanded: bool = True) -> None:
        """Make every commit wait for the standby, or not."""
        names = _STANDBY if demanded else ""
        connection = await connect(self.url)
        await connection.execute(f"alter system set synchronous_standby_names = '{names}'")
        await connection.execute("select pg_reload_conf()")
        await connection.close()
        await eventually(self._is_synchronous if demanded else self._is_released, what="the new setting")

    async def _is_synchronous(self) -> bool:
        return await self._ask("select true from pg_stat_replication where sync_state = 'sync'")

    async def _is_released(self) -> bool:
        return await self._ask("select current_setting('synchronous_standby_names') = ''")

    async def _ask(self, question: str) -> bool:
        connection = await connect(self.url)
        try:
            return bool(await connection.fetchval(question))
        finally:
            await connection.close()

    def lose(self) -> None:
        """Stop the standby: commits wait from now on."""
        if self.standby is not None:
            self.standby.stop()
        self.standby = None

    def regain(self) -> None:
        """Restart the standby, which catches up."""
        self.standby = EmbeddedPostgres.start(self._home)

    async def waits(self) -> bool:
        """Whether a commit waits for the standby."""
        return await self._ask("select true from pg_stat_activity where wait_event = 'SyncRep'")

    async def cancel_waits(self) -> int:
        """Cancel every commit that waits for the standby, as an operator might. Returns how many."""
        connection = await connect(self.url)
        cancelled = await connection.fetch(
            "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"
        )
        await connection.close()
        return len(cancelled)

    async def fail_over(self) -> str:
        """Kill the primary and promote the standby. Returns the standby's URL."""
        assert self.primary is not None
        self.primary.stop()
        self.primary = None
        if self.standby is None:
            self.regain()
        assert self.standby is not None
        connection = await connect(self.standby.url)
        assert await connection.fetchval("select pg_promote(true, 60)")
        # It was told to demand a standby of its own, which it has not.
        await connection.execute("alter system set synchronous_standby_names = ''")
        await connection.execute("select pg_reload_conf()")
        await connection.close()
        return self.standby.url

    def stop(self) -> None:
        """End both. A second call does nothing."""
        self.lose()
        primary, self.primary = self.primary, None
        if primary is not None:
            primary.stop()
