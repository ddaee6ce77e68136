"""GET /v1/jobs/{id}: as it is, and as it was."""

from typing import Any

from orchestrator.events import CancelRequested, JobFinish, ModelSelected, RetryRequested, StepError, StepRetry
from tests.http.conftest import Scribe, invalid, minute, rejected
from tests.kit import Api, History

JOB = {
    *("id", "type", "status", "created_at", "updated_at", "version", "params", "metadata", "steps", "summary"),
    *("error_code", "error_message", "links"),
}
STEP = {"id", "name", "status", "attempt", "started_at", "finished_at", "metadata"}


def eventful() -> tuple[History, list[tuple[str, tuple[str, str], int]]]:
    """A history in which everything happens, and what is to be seen after each version: job, steps, completed."""
    job = History(count=2)
    up = job.step_id("upscale")
    seen = [("queued", ("queued", "queued"), 0)]

    def then(status: str, generate: str, upscale: str, completed: int) -> None:
        seen.append((status, (generate, upscale), completed))

    job.started("generate")
    then("running", "running", "queued", 0)
    job.add(
        ModelSelected(
            step_id=job.step_id("generate"), step_name="generate", attempt=1, model_id=None, engine="fake", source="x"
        )
    )
    then("running", "running", "queued", 0)
    job.wrote("generate", 0, 1).finished("generate")
    seen += [("running", ("running", "queued"), 0)] * 2 + [("running", ("succeeded", "queued"), 0)]
    job.started("upscale").wrote("upscale", 0)
    seen += [("running", ("succeeded", "running"), 0), ("running", ("succeeded", "running"), 1)]
    given: dict[str, Any] = {"step_id": up, "step_name": "upscale", "error_code": "oom", "error_message": "Full."}
    job.add(StepRetry(**given, attempt=1, reason="failure", delay_s=0))
    then("running", "succeeded", "queued", 1)
    job.started("upscale", 2).add(StepError(**given, attempt=2, item_index=1)).finished("upscale", "failed", 2)
    seen += [("running", ("succeeded", "running"), 1)] * 2 + [("running", ("succeeded", "failed"), 1)]
    job.add(JobFinish(status="failed"))
    then("failed", "succeeded", "failed", 1)
    job.add(RetryRequested(step_id=up, step_name="upscale"))
    then("queued", "succeeded", "queued", 1)
    job.started("upscale", 3).add(CancelRequested())
    seen += [("running", ("succeeded", "running"), 1)] * 2
    job.finished("upscale", "cancelled", 3).add(JobFinish(status="cancelled"))
    seen += [("running", ("succeeded", "cancelled"), 1), ("cancelled", ("succeeded", "cancelled"), 1)]
    return job, seen


async def test_every_version_is_told_as_it_was(lone: Api, scribe: Scribe) -> None:
    """By version, and by the time of its event; the answer is that of a job which never went on."""
    history, seen = eventful()
    assert len(history.events) == len(seen)
    job_id = await scribe.write(history)
    for version, (status, steps, completed) in enumerate(seen, start=1):
        job = lone.get(f"/v1/jobs/{job_id}", as_of_version=version)
        assert (job["version"], job["status"]) == (version, status)
        assert tuple(step["status"] for step in job["steps"]) == steps
        assert job["summary"] == {"count": 2, "completed": completed}
        assert lone.get(f"/v1/jobs/{job_id}", as_of=minute(version).isoformat()) == job
        assert job.keys() == JOB
        assert all(step.keys() == STEP for step in job["steps"])
    assert lone.job(job_id) == job


async def test_errors_are_told_while_they_last(lone: Api, scribe: Scribe) -> None:
    """A retry takes the error back; attempts are counted on, and the first start stays."""
    history, _ = eventful()
    job_id = await scribe.write(history)
    failed = lone.get(f"/v1/jobs/{job_id}", as_of_version=13)
    assert (failed["error_code"], failed["error_message"]) == ("oom", "Full.")
    again = lone.get(f"/v1/jobs/{job_id}", as_of_version=14)
    assert (again["error_code"], again["error_message"]) == (None, None)
    now = lone.job(job_id)
    assert (now["error_code"], now["steps"][1]["attempt"]) == ("cancelled", 3)
    assert now["steps"][1]["started_at"] == failed["steps"][1]["started_at"]
    assert now["steps"][0]["metadata"]["engine"] == "fake"


async def test_as_of_is_the_longest_beginning_by_then(lone: Api, scribe: Scribe) -> None:
    """Where clocks disagree, what comes after a later event is not shown before it."""
    history = History(scale=None, count=2).started("generate").wrote("generate", 0, 1)
    job_id = await scribe.write(history, times=[minute(1), minute(5), minute(3), minute(6)])
    for at, version in ((1, 1), (3, 1), (4, 1), (5, 3), (6, 4), (9, 4)):
        assert lone.get(f"/v1/jobs/{job_id}", as_of=minute(at).isoformat())["version"] == version


async def test_a_time_or_version_that_is_none_of_the_jobs(lone: Api, scribe: Scribe) -> None:
    """Before its creation: 404. Beyond its head, or both at once: 422."""
    path = f"/v1/jobs/{await scribe.write(History())}"
    rejected(lone.http.get(path, params={"as_of": minute(0).isoformat()}), 404, "not_found")
    rejected(lone.http.get(path, params={"as_of_version": 0}), 404, "not_found")
    invalid(lone.http.get(path, params={"as_of_version": 2}), "as_of_version")
    both = lone.http.get(path, params={"as_of_version": 1, "as_of": minute(1).isoformat()})
    assert invalid(both, both.json()["details"]["field"])
    assert both.json()["details"]["field"] in {"as_of", "as_of_version"}


async def test_an_etag_spares_the_body_while_nothing_has_changed(lone: Api, scribe: Scribe) -> None:
    """`"v{version}"`; lists, weak tags and * are read, too."""
    path = f"/v1/jobs/{await scribe.write(History().started('generate'))}"
    assert lone.http.get(path).headers["ETag"] == '"v2"'
    for given in ('"v2"', 'W/"v2"', '"v1", "v2"', "*"):
        answer = lone.http.get(path, headers={"If-None-Match": given})
        assert (answer.status_code, answer.headers["ETag"], answer.content) == (304, '"v2"', b"")
    for given in ('"v1"', "v2", ""):
        assert lone.http.get(path, headers={"If-None-Match": given}).status_code == 200


def test_a_read_shows_at_once_what_an_answer_reported(lone: Api, tuned: Api, old: Api) -> None:
    """On any server, though no projector runs."""
    for _ in range(5):
        job_id = lone.create()
        assert tuned.job(job_id)["version"] == 1
        lone.http.post(f"/v1/jobs/{job_id}/cancel")
        assert old.job(job_id)["version"] == 2


def test_params_are_the_normalised_request(api: Api) -> None:
    """With the engine that was really used in the step's metadata."""
    job_id = api.create(engine="sdxl", provider="acme", negative_prompt="rain", metadata={"order": "66"})
    job = api.finished(job_id)
    assert (job["params"]["engine"], job["params"]["provider"]) == ("sdxl", "acme")
    assert (job["params"]["negative_prompt"], job["metadata"]) == ("rain", {"order": "66"})
    assert job["params"]["chain"] == {"upscale": {"scale": 2, "impl": "auto", "strict_scale": False}}
    assert job["steps"][0]["metadata"]["engine"] == "fake"
    assert job["steps"][1]["metadata"]["scale"] == 2
