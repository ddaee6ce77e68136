"""A whole fleet behind Debian's PgBouncer in transaction mode, with nobody listening."""

from contextlib import ExitStack

import pytest

from artifacts.object_store import S3Config
from dreamforge.backends import replace_url_login
from tests import pooler
from tests.conftest import Backends
from tests.kit import SERVICE_LOGIN, Api, Service, codes, roles_environ


@pytest.mark.skipif(not pooler.PROGRAM.exists(), reason="Debian's package pgbouncer is not installed")
def test_a_fleet_works_through_a_pooler_by_polling_alone(
    backends: Backends, db_url: str, s3_config: S3Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given neither sessions nor notifications, then chained jobs end all the same, each step begun once."""
    monkeypatch.setenv("DF_TEST_POOLER", "pgbouncer")
    monkeypatch.setenv("DF_TEST_LISTEN", "off")
    with ExitStack() as stack:
        stack.enter_context(pooler.pooled(backends.db_url, SERVICE_LOGIN))
        environ = roles_environ(db_url, s3_config)
        assert environ["DF_DB_URL"] != replace_url_login(db_url, *SERVICE_LOGIN)
        assert (environ["DF_DB_LISTEN_URL"], environ["DF_DB_POOLER"]) == ("off", "transaction")
        services = [Service(role, environ) for role in ("api", "api", "orchestrator", "projector", "runner", "runner")]
        for service in services:
            stack.callback(service.stop)
        apis = [Api(service.url) for service in services[:2]]
        jobs = [api.create(count=2) for api in apis for _ in range(5)]
        for job in jobs:
            assert apis[0].finished(job)["status"] == "succeeded"
            assert codes(apis[1].history(job)).count("step.start") == 2
        for api in apis:
            api.close()
