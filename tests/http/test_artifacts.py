"""GET /v1/jobs/{id}/artifacts, and each one's /content."""

import hashlib
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.http.conftest import Scribe, invalid, succeeded
from tests.kit import Api, History

ARTIFACT = {
    *("id", "step", "format", "width", "height", "seed", "item_index", "s3_key", "bytes", "sha256", "url"),
    "expires_at",
}


def lifetime(artifact: Any) -> tuple[int, float]:
    """For how many seconds a URL is signed, and how many are left by expires_at."""
    signed = int(httpx.URL(artifact["url"]).params["X-Amz-Expires"])
    return signed, (datetime.fromisoformat(artifact["expires_at"]) - datetime.now(UTC)).total_seconds()


async def test_artifacts_come_by_step_then_index(lone: Api, scribe: Scribe) -> None:
    """In whatever order they were written, and those of a step that is not at its end, too."""
    history = History(count=3).started("generate").wrote("generate", 2, 0, 1).finished("generate")
    job_id = await scribe.write(history.started("upscale").wrote("upscale", 1, 0))
    found = [(one["step"], one["item_index"]) for one in lone.artifacts(job_id)]
    assert found == [*(("generate", index) for index in range(3)), ("upscale", 0), ("upscale", 1)]
    assert [one["step"] for one in lone.artifacts(job_id, step="generate")] == ["generate"] * 3
    assert [one["item_index"] for one in lone.artifacts(job_id, step="upscale")] == [0, 1]


def test_a_job_without_artifacts_has_none(lone: Api) -> None:
    assert lone.artifacts(lone.create()) == []
    assert lone.artifacts(lone.create(scale=None), step="upscale") == []


def test_a_presigned_url_leads_to_the_bytes_that_were_recorded(api: Api) -> None:
    job_id = api.create(scale=None, format="jpg")
    api.finished(job_id)
    [artifact] = api.artifacts(job_id)
    assert artifact.keys() == ARTIFACT
    answer = httpx.get(artifact["url"], trust_env=False)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/jpeg")
    assert len(answer.content) == artifact["bytes"]
    assert hashlib.sha256(answer.content).hexdigest() == artifact["sha256"]


def test_content_redirects_to_the_same_bytes(api: Api) -> None:
    """302, to a URL that is made afresh, so that it must not be kept."""
    job_id = api.create(scale=None)
    api.finished(job_id)
    [artifact] = api.artifacts(job_id)
    answer = api.http.get(f"/v1/jobs/{job_id}/artifacts/{artifact['id']}/content")
    assert (answer.status_code, answer.content) == (302, b"")
    led = httpx.get(answer.headers["Location"], trust_env=False)
    assert hashlib.sha256(led.content).hexdigest() == artifact["sha256"]


def test_a_head_of_content_leads_to_what_takes_a_head(api: Api) -> None:
    """Given that S3 takes a signature for its one method alone, then the redirect of a HEAD can be followed by one."""
    job_id = api.create(scale=None)
    api.finished(job_id)
    [artifact] = api.artifacts(job_id)
    path = f"/v1/jobs/{job_id}/artifacts/{artifact['id']}/content"
    led = api.http.head(path, follow_redirects=True)
    assert (led.status_code, int(led.headers["Content-Length"])) == (200, artifact["bytes"])


def test_content_tells_its_place_to_who_asks_for_no_redirect(api: Api) -> None:
    """Given a client that would send its key along with a redirect, then it gets the URL, and asks that by itself."""
    job_id = api.create(scale=None)
    api.finished(job_id)
    [artifact] = api.artifacts(job_id)
    path = f"/v1/jobs/{job_id}/artifacts/{artifact['id']}/content"
    answer = api.http.get(path, params={"redirect": "0"})
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    told = answer.json()
    assert told.keys() == {"url", "expires_at"}
    assert httpx.get(told["url"], trust_env=False).content == httpx.get(artifact["url"], trust_env=False).content
    signed, left = lifetime(told)
    assert signed - 30 < left <= signed
    assert api.http.head(path, params={"redirect": "0"}).status_code == 200
    invalid(api.http.get(path, params={"redirect": "no"}), "redirect")


@pytest.mark.parametrize(("fixture", "seconds"), [("lone", 3600), ("tuned", 300), ("old", 86400)])
async def test_a_url_is_valid_for_so_long(
    request: pytest.FixtureRequest, scribe: Scribe, fixture: str, seconds: int
) -> None:
    """DF_PRESIGN_EXPIRES_S: an hour, clamped to five minutes and a day."""
    api: Api = request.getfixturevalue(fixture)
    [artifact, *_] = api.artifacts(await scribe.write(succeeded()))
    signed, left = lifetime(artifact)
    assert signed == seconds
    assert seconds - 30 < left <= seconds
