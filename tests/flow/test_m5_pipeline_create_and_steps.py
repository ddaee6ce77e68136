"""AC-1, AC-2, AC-3: what can be posted, and the steps that come of it."""

from typing import Any

import pytest

from tests.kit import Api, codes

SMALL = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2}
LEGACY = {**SMALL, "count": 2}
CHAIN = {**LEGACY, "chain": {"upscale": {"scale": 2}}}
PIPELINE = {"pipeline": [LEGACY, {"type": "upscale", "scale": 2, "mode": "image"}]}


def names(job: Any) -> list[str]:
    """The names of a job's steps, in order."""
    return [step["name"] for step in job["steps"]]


def test_a_legacy_request_makes_a_job_of_one_step(api: Api) -> None:
    """AC-1: without chain, generate is all there is, and it runs to its end."""
    answer = api.post(LEGACY)
    assert answer.status_code in {200, 202}
    job_id = answer.json()["job"]["id"]
    assert answer.headers["Location"] == f"/v1/jobs/{job_id}"
    assert answer.json()["job"]["status"] in {"queued", "succeeded"}
    job = api.finished(job_id)
    assert job["status"] == "succeeded"
    assert names(job) == ["generate"]
    assert job["params"]["chain"] is None
    assert job["summary"] == {"count": 2, "completed": 2}


@pytest.mark.parametrize("body", [CHAIN, PIPELINE], ids=["chain", "pipeline"])
def test_a_chain_makes_two_ordered_steps_and_runs_generate_first(api: Api, body: dict[str, Any]) -> None:
    """AC-2 and E5-1: both forms persist generate and upscale, in this order, and generate starts first."""
    job_id = api.post(body).json()["job"]["id"]
    at_once = api.job(job_id)
    assert names(at_once) == ["generate", "upscale"]
    job = api.finished(job_id)
    assert [step["status"] for step in job["steps"]] == ["succeeded", "succeeded"]
    history = codes(api.history(job_id))
    assert history[0] == "job.created"
    assert history[-1] == "job.finish"
    starts = [event["step"] for event in api.history(job_id) if event["code"] == "step.start"]
    assert starts == ["generate", "upscale"]


def test_chain_and_pipeline_normalise_to_the_same_kind_of_job(api: Api) -> None:
    """Both say the same thing; only the upscaler is named by pipeline."""
    jobs = [api.job(api.post({**body}).json()["job"]["id"]) for body in (CHAIN, PIPELINE)]
    for job in jobs:
        job["params"].pop("seed")
    assert jobs[0]["params"].pop("chain") == {"upscale": {"scale": 2, "impl": "auto", "strict_scale": False}}
    assert jobs[1]["params"].pop("chain") == {"upscale": {"scale": 2, "impl": "image", "strict_scale": False}}
    assert jobs[0]["params"] == jobs[1]["params"]


@pytest.mark.parametrize("chain", [None, {}, {"upscale": None}], ids=["null", "empty", "upscale-null"])
def test_an_empty_chain_means_no_chain(api: Api, chain: Any) -> None:
    """A field that is null is as good as absent."""
    assert names(api.job(api.post({**SMALL, "chain": chain}).json()["job"]["id"])) == ["generate"]


def test_scale_defaults_to_two_and_may_be_four(api: Api) -> None:
    """E5-1: 2 where nothing is said."""
    for upscale, factor in (({}, 2), ({"scale": 2}, 2), ({"scale": 4}, 4)):
        job_id = api.post({**SMALL, "chain": {"upscale": upscale}}).json()["job"]["id"]
        assert api.finished(job_id)["status"] == "succeeded"
        [artifact] = api.artifacts(job_id, step="upscale")
        assert (artifact["width"], artifact["height"]) == (64 * factor, 64 * factor)


@pytest.mark.parametrize(
    "pipeline",
    [
        [],
        [LEGACY],
        [{"type": "upscale"}, LEGACY],
        [LEGACY, {"type": "upscale"}, {"type": "upscale"}],
        [LEGACY, {"type": "upscale", "scale": 3}],
        [LEGACY, {"type": "upscale", "mode": "gan"}],
        "generate",
    ],
)
def test_any_other_pipeline_is_rejected_in_these_words(api: Api, pipeline: Any) -> None:
    """Section 5 of the plan gives the details to the letter."""
    answer = api.post({"pipeline": pipeline})
    assert answer.status_code == 422
    body = answer.json()
    assert body["code"] == "invalid_input"
    assert body["details"] == {"field": "pipeline", "reason": "M5 only supports [generate, upscale]"}
    assert body["detail"] == {name: body[name] for name in ("code", "message", "details")}
    assert body["correlation_id"] == answer.headers["X-Request-Id"]


def test_the_answer_speaks_of_the_terminal_step(api: Api) -> None:
    """AC-3: status lists both steps in order; summary counts the terminal step's items."""
    job = api.finished(api.create(count=3))
    assert [(step["name"], step["status"], step["attempt"]) for step in job["steps"]] == [
        ("generate", "succeeded", 1),
        ("upscale", "succeeded", 1),
    ]
    assert job["summary"] == {"count": 3, "completed": 3}
    assert job["steps"][1]["metadata"]["scale"] == 2
    for step in job["steps"]:
        assert step["started_at"] <= step["finished_at"]
    assert job["links"]["self"] == f"/v1/jobs/{job['id']}"
