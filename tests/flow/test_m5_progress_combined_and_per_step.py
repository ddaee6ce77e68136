"""AC-5: combined progress, and each step's own on request."""

from tests.kit import Api


def test_progress_rises_through_both_steps_to_exactly_one(api: Api) -> None:
    """The average of both steps never falls, passes 0.5 where generate ends, and ends at 1.0."""
    job_id = api.create(count=4)
    stream = [one.data["progress"] for one in api.stream(job_id) if one.event == "progress"]
    assert stream == sorted(stream)
    assert stream[-1] == 1.0
    found = api.get(f"/v1/jobs/{job_id}/progress")
    assert found == {
        "progress": 1.0,
        "items": [{"item_index": index, "progress": 1.0} for index in range(4)],
        "stages": [{"name": "generate", "weight": 0.5}, {"name": "upscale", "weight": 0.5}],
    }


def test_per_step_is_there_on_request_only(api: Api) -> None:
    """The default shape has no per_step."""
    job_id = api.create(count=2)
    api.finished(job_id)
    assert "per_step" not in api.get(f"/v1/jobs/{job_id}/progress")
    found = api.get(f"/v1/jobs/{job_id}/progress", include="per_step")
    assert found["per_step"] == {"generate": 1.0, "upscale": 1.0}


def test_a_single_step_keeps_the_old_stages(api: Api) -> None:
    """AC-1: legacy jobs answer as they always did."""
    job_id = api.create(scale=None, count=2)
    api.finished(job_id)
    found = api.get(f"/v1/jobs/{job_id}/progress")
    assert found["progress"] == 1.0
    assert found["stages"] == [
        {"name": "queued_to_start", "weight": 0.1},
        {"name": "sampling", "weight": 0.8},
        {"name": "finalize", "weight": 0.1},
    ]
