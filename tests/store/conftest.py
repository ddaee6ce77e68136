"""The store's tests run on the embedded PostgreSQL, and on Debian's PostgreSQL 15 where that is installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamforge.embedded import EmbeddedPostgres
from tests.conftest import Backends, set_fsync
from tests.kit import SERVICE_LOGIN
from tests.pooler import pooled

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session", params=["18", "15"])
def backends(request: pytest.FixtureRequest, servers_home: Path, session_backends: Backends) -> Iterator[Backends]:
    """The session's object store, with one of two databases."""
    if request.param == "18":
        yield session_backends
        return
    if not (DEBIAN_15 / "postgres").exists():
        pytest.skip("Debian's package postgresql-15 is not installed")
    fifteen = EmbeddedPostgres.start(servers_home / "fifteen", DEBIAN_15)
    set_fsync(fifteen.url, on=False)
    with pooled(fifteen.url, SERVICE_LOGIN):
        yield Backends(fifteen.url, session_backends.s3)
    fifteen.stop()
