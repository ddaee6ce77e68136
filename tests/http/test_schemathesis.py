"""schemathesis against a live API: no 5xx, no undocumented status, nothing that its schema does not describe.

DF_TEST_EXAMPLES sets how many examples each operation gets (200 in `make contract`).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.object_store import S3Config
from tests.conftest import Backends, fresh_database
from tests.kit import Api, Service, project_root, roles_environ
from tests.weights import safetensors

EXAMPLES = os.environ.get("DF_TEST_EXAMPLES", "3")


@pytest.fixture
def served(backends: Backends, s3_config: S3Config, tmp_path: Path) -> Iterator[str]:
    """An API with everything but a runner: what comes at random would keep one busy for days. Streams end early."""
    with fresh_database(backends) as url:
        # Every size that the schema allows; DF_MAX_PIXELS is no part of it.
        environ = roles_environ(url, s3_config, DF_STREAM_MAX_S="0.2", DF_MAX_PIXELS=str(2**30))
        roles = [Service(role, environ) for role in ("api", "orchestrator", "projector")]
        try:
            _populate(roles[0].url, environ, tmp_path)
            yield roles[0].url
        finally:
            for role in roles:
                role.stop()


def _populate(base: str, environ: dict[str, str], folder: Path) -> None:
    """A model, a job with its images, one that waits, and an anchor."""
    weights = folder / "weights.safetensors"
    weights.write_bytes(safetensors())
    cli = [sys.executable, "-m", "dreamforge", "--no-env-file"]
    command = [*cli, "models", "add", str(weights), "--kind", "generator"]
    key = folder / "anchor.pem"
    for run in (command, [*cli, "audit", "key", str(key)], [*cli, "audit", "anchor"]):
        subprocess.run(run, env=os.environ | environ | {"DF_ANCHOR_KEY": str(key)}, check=True, capture_output=True)
    api = Api(base)
    runner = Service("runner", environ)
    try:
        api.finished(api.create())
    finally:
        runner.stop()
    api.create()
    api.close()


def test_the_service_is_as_its_document_says(served: str) -> None:
    """Given examples of every operation, sound and unsound, then each answer is one that the document describes."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(project_root() / "tests" / "http" / "schemathesis.toml")),
            *("run", f"{served}/openapi.json"),
            *("--max-examples", EXAMPLES, "--checks", "all", "--workers", "1", "--no-color"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=project_root(),
    )
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
