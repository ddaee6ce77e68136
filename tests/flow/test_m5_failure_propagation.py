"""AC-7: a failed step fails its job; what earlier steps wrote stays."""

from collections.abc import Iterator

import pytest

from artifacts.object_store import S3Config
from tests.conftest import Backends, fresh_database
from tests.kit import Api, Service, codes, roles_environ


@pytest.fixture(scope="module", params=["upscale:1", "generate"])
def failing(request: pytest.FixtureRequest, backends: Backends, s3_config: S3Config) -> Iterator[tuple[str, Api]]:
    """A service whose runner fails as DF_FAKE_FAIL says."""
    with fresh_database(backends) as url:
        service = Service("up", roles_environ(url, s3_config, DF_FAKE_FAIL=request.param))
        api = Api(service.url)
        yield request.param, api
        api.close()
        service.stop()


def test_a_failed_step_fails_the_job_and_keeps_what_was_written(failing: tuple[str, Api]) -> None:
    """Generate's failure stops the chain; upscale's keeps generate's artifacts, and its own earlier ones."""
    fault, api = failing
    job_id = api.create(count=3)
    job = api.finished(job_id)
    assert job["status"] == "failed"
    assert job["error_code"] == "provider_error"
    assert "DF_FAKE_FAIL" in job["error_message"]
    history = api.history(job_id)
    assert codes(history)[-3:] == ["error", "step.finish", "job.finish"]
    written = [one["step"] for one in api.artifacts(job_id)]
    if fault == "generate":
        assert [step["status"] for step in job["steps"]] == ["failed", "queued"]
        assert written == []
        assert "upscale" not in {one["step"] for one in history}
    else:
        assert [step["status"] for step in job["steps"]] == ["succeeded", "failed"]
        assert written.count("generate") == 3
        assert job["summary"]["completed"] == written.count("upscale") == 1, "what was rendered before is kept"


def test_the_stream_tells_the_error_and_ends(failing: tuple[str, Api]) -> None:
    """`event: error` carries the job's error code; a last progress below 1 follows job.finish."""
    fault, api = failing
    events = api.stream(api.create(count=2))
    [error] = [one for one in events if one.event == "error"]
    assert error.data["code"] == "provider_error"
    assert error.data["step"] == fault.split(":")[0]
    assert error.data["item_index"] == (1 if ":" in fault else 0)
    assert events[-1].event == "progress"
    assert events[-1].data["progress"] < 1.0
