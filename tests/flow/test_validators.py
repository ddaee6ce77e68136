"""The validators, as somebody else would run them: against whatever answers at a URL."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from artifacts.object_store import S3Config
from dreamforge.settings import unconfigured_environ
from tests.conftest import Backends, fresh_database
from tests.kit import Service, parse_sse, project_root, roles_environ

SCRIPTS = project_root() / "scripts"
VALIDATORS = ["validate_m4.py", "validate_m5.py"]


def validate(script: str, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run a validator to its end."""
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *arguments],
        env=unconfigured_environ() | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def failing(backends: Backends, s3_config: S3Config) -> Iterator[str]:
    """Where a service is whose every upscale fails."""
    with fresh_database(backends) as url:
        service = Service("up", roles_environ(url, s3_config, DF_FAKE_FAIL="upscale"))
        yield service.url
        service.stop()


@pytest.mark.parametrize("script", VALIDATORS)
def test_a_sound_service_passes_every_check(service: Service, script: str) -> None:
    done = validate(script, "--base", service.url)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("FAILED")]
    assert len([line for line in lines if line.startswith("ok ")]) > 15
    assert lines[-1] == "All is as it should be."


def test_the_sample_of_the_stream_is_raw(service: Service) -> None:
    """Frames to the letter, each kind once, from `retry:` to the last progress."""
    out = validate("validate_m5.py", "--base", service.url).stdout
    transcript = out[out.index("retry: ") : out.index("\n\nok ", out.index("retry: "))]
    assert transcript.startswith("retry: 2000\nevent: log\ndata: {")
    told = [(one.event, one.data.get("code"), one.data.get("step")) for one in parse_sse(transcript)]
    assert told[0] == ("log", "job.created", None)
    for step in ("generate", "upscale"):
        for event, code in (("log", "step.start"), ("artifact", "artifact.written"), ("log", "step.finish")):
            assert told.count((event, code, step)) == 1
    assert told[-2:] == [("log", "job.finish", None), ("progress", None, None)]


def test_the_base_may_come_from_the_settings(service: Service) -> None:
    assert validate("validate_m4.py", DF_API_BASE=service.url).returncode == 0


@pytest.mark.parametrize("script", VALIDATORS)
def test_where_nothing_answers_it_says_what_to_do(script: str) -> None:
    done = validate(script, "--base", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "FAILED No service is ready at http://127.0.0.1:9. Start one with `make up-fake`, or name another with --base."
    ]
    assert done.stderr == ""


def test_a_service_that_fails_fails_the_check_and_the_rest_is_still_checked(failing: str) -> None:
    done = validate("validate_m5.py", "--base", failing)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("FAILED The job succeeds: it failed: provider_error: ") for line in lines)
    assert "ok     A pipeline in the wrong order is refused" in lines
    assert "Traceback" not in done.stdout + done.stderr
    assert lines[-1].endswith(" checks FAILED.")


def test_both_run_against_a_given_service_in_one_go(service: Service) -> None:
    """As `make e2e-m4 BASE=…` runs them."""
    done = validate("e2e.py", "--base", service.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line in VALIDATORS] == VALIDATORS


def test_one_that_fails_fails_the_whole(failing: str) -> None:
    done = validate("e2e.py", "--base", failing)
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line in VALIDATORS] == VALIDATORS


def test_without_a_service_a_stack_is_started_and_stopped() -> None:
    """As `make e2e-m4` does: in a folder that is gone afterwards."""
    done = validate("e2e.py")
    assert done.returncode == 0, done.stdout + done.stderr
    base = done.stdout.partition("runs at ")[2].partition(".\n")[0]
    assert base.startswith("http://127.0.0.1:")
    assert validate("validate_m4.py", "--base", base).returncode == 1, "nothing is to answer there any more"
