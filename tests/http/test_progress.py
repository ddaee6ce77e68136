"""GET /v1/jobs/{id}/progress."""

from typing import Any

import pytest

from tests.http.conftest import Scribe
from tests.kit import Api, History, Service


def part(generated: int, upscaled: int | None, count: int = 3) -> History:
    """A job with so many items done; of one step with None."""
    history = History(count=count, scale=None if upscaled is None else 2).started("generate")
    history.wrote("generate", *range(generated))
    if upscaled is not None and generated == count:
        history.finished("generate").started("upscale").wrote("upscale", *reversed(range(upscaled)))
    return history


def progress(api: Api, job_id: str, **params: Any) -> Any:
    """The answer."""
    return api.get(f"/v1/jobs/{job_id}/progress", **params)


@pytest.mark.parametrize(("fixture", "weights"), [("lone", (0.5, 0.5)), ("tuned", (0.25, 0.75)), ("old", (0.5, 0.5))])
@pytest.mark.parametrize(("generated", "upscaled"), [(0, 0), (1, 0), (3, 0), (3, 2), (3, 3)])
async def test_a_chain_progresses_by_the_weights_of_its_steps(
    request: pytest.FixtureRequest,
    scribe: Scribe,
    fixture: str,
    weights: tuple[float, float],
    generated: int,
    upscaled: int,
) -> None:
    """DF_PROGRESS_WEIGHTS, divided by their sum; the default without it, or where it can't be used."""
    api: Api = request.getfixturevalue(fixture)
    found = progress(api, await scribe.write(part(generated, upscaled)))
    assert found == {
        "progress": round(weights[0] * generated / 3 + weights[1] * upscaled / 3, 6),
        "items": [{"item_index": index, "progress": 1.0} for index in range(upscaled)],
        "stages": [{"name": "generate", "weight": weights[0]}, {"name": "upscale", "weight": weights[1]}],
    }


@pytest.mark.parametrize("generated", [0, 1, 3])
async def test_a_single_step_has_the_old_stages(lone: Api, scribe: Scribe, generated: int) -> None:
    found = progress(lone, await scribe.write(part(generated, None)))
    assert found["progress"] == round(generated / 3, 6)
    assert [one["item_index"] for one in found["items"]] == list(range(generated))
    assert [(one["name"], one["weight"]) for one in found["stages"]] == [
        ("queued_to_start", 0.1),
        ("sampling", 0.8),
        ("finalize", 0.1),
    ]


async def test_each_steps_own_is_added_on_request(lone: Api, scribe: Scribe) -> None:
    """Among other words, too; six digits."""
    chained, single = await scribe.write(part(3, 1)), await scribe.write(part(2, None))
    assert progress(lone, chained, include="per_step")["per_step"] == {"generate": 1.0, "upscale": 0.333333}
    assert progress(lone, single, include="colour,per_step")["per_step"] == {"generate": 0.666667}
    for params in ({}, {"include": "colour"}):
        assert progress(lone, chained, **params).keys() == {"progress", "items", "stages"}


def test_weights_that_cannot_be_used_are_warned_of_once(old: Api, old_service: Service) -> None:
    """And the service starts all the same."""
    assert old.get("/healthz")["status"] == "ok"
    warnings = [line for line in old_service.lines if "DF_PROGRESS_WEIGHTS" in line]
    assert len(warnings) == 1
    assert '"warning"' in warnings[0]
