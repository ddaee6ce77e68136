"""An operator makes and revokes keys; a client shows one."""

import json
from typing import Any

import httpx
import pytest

from artifacts.object_store import S3Config
from tests.http.conftest import running, until
from tests.kit import dreamforge, roles_environ


def keys(environ: dict[str, str], *arguments: str, code: int = 0) -> Any:
    """The answer of `dreamforge keys`, which must exit so."""
    done = dreamforge("keys", *arguments, "--output", "json", **environ)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_a_key_opens_its_tenants_jobs_until_it_is_revoked(db_url: str, s3_config: S3Config) -> None:
    """From `keys create` over `jobs create` to `keys revoke`, as a script would do it."""
    environ = roles_environ(db_url, s3_config) | {"DF_DB_URL": db_url}
    made = keys(environ, "create", "ci", "--tenant", "acme", "--scopes", "audit, jobs")
    assert (made["tenant"], made["scopes"]) == ("acme", ["jobs", "audit"])
    [listed] = keys(environ, "list", "--tenant", "acme")
    assert (listed["id"], listed["name"], listed["revoked_at"]) == (made["id"], "ci", None)
    assert made["key"] not in json.dumps(listed)
    assert keys(environ, "list", "--tenant", "others") == []
    with running("up", db_url, s3_config, DF_REQUIRE_KEYS="1") as service:
        given = {"DF_API_BASE": service.url}
        create = ("jobs", "create", "--prompt", "a castle", "--size", "64", "--watch", "--output", "json")
        rejected = dreamforge(*create, **given)
        assert rejected.returncode == 2
        assert "API key" in rejected.stderr
        done = dreamforge(*create, **given, DF_API_KEY=made["key"])
        assert done.returncode == 0, done.stderr
        assert keys(environ, "revoke", "ci")["revoked_at"]
        until(lambda: dreamforge("jobs", "list", **given, DF_API_KEY=made["key"]).returncode == 2)
    assert keys(environ, "list") == []
    assert [key["id"] for key in keys(environ, "list", "--all")] == [made["id"]]


def test_what_makes_no_key_is_said(db_url: str, s3_config: S3Config) -> None:
    """A name that is taken, a tenant or scope that is none, a key that is not there."""
    environ = roles_environ(db_url, s3_config) | {"DF_DB_URL": db_url}
    keys(environ, "create", "one")
    assert "revoke it" in keys(environ, "create", "one", code=2)
    keys(environ, "create", "one", "--tenant", "acme")
    assert "by its id" in keys(environ, "revoke", "one", code=4)
    assert "no key" in keys(environ, "revoke", "two", code=4)
    for wrong in (["--tenant", "Acme"], ["--tenant", "a/b"], ["--scopes", "root"], ["--scopes", ""]):
        keys(environ, "create", "two", *wrong, code=2)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "forge.example"])
def test_strangers_are_not_served_by_mistake(db_url: str, s3_config: S3Config, host: str) -> None:
    """An address that others reach wants keys, or to be told that none are meant."""
    rejected = dreamforge("api", **roles_environ(db_url, s3_config, DF_HOST=host))
    assert rejected.returncode == 1
    assert "DF_REQUIRE_KEYS" in rejected.stderr
    assert "DF_ALLOW_ANONYMOUS" in rejected.stderr
    assert "Traceback" not in rejected.stderr


@pytest.mark.parametrize(("setting", "status"), [("DF_REQUIRE_KEYS", 401), ("DF_ALLOW_ANONYMOUS", 200)])
def test_with_keys_or_on_purpose_others_are_served(db_url: str, s3_config: S3Config, setting: str, status: int) -> None:
    with running("api", db_url, s3_config, DF_HOST="0.0.0.0", **{setting: "1"}) as service:
        url = service.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/jobs", trust_env=False).status_code == status
