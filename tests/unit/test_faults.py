"""Failures on request: which item of which step fails, and how often."""

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from orchestrator.step_errors import ProviderError, to_step_error
from runners.faults import FaultPlan

JOB = UUID("018f0000-0000-7000-8000-000000000001")
OTHER_JOB = UUID("018f0000-0000-7000-8000-000000000002")


def fails(plan: FaultPlan, step: str, item_index: int, job_id: UUID = JOB) -> bool:
    try:
        plan.check(step, item_index, job_id)
    except ProviderError:
        return True
    return False


def test_an_error_says_only_what_can_be_stored() -> None:
    """Given an engine's message with U+0000 and half a surrogate pair, then an event can hold it."""
    assert str(to_step_error(ProviderError("CUDA\0 error in \ud800"))) == "CUDA error in ?"


def test_an_empty_plan_never_fails() -> None:
    assert not fails(FaultPlan.parse(""), "upscale", 0)


def test_a_step_alone_fails_at_every_item_for_ever() -> None:
    plan = FaultPlan.parse("upscale")
    assert all(fails(plan, "upscale", item) for item in (0, 1, 0, 1, 7))
    assert not fails(plan, "generate", 0)


def test_an_item_fails_alone() -> None:
    plan = FaultPlan.parse("generate:2")
    assert [fails(plan, "generate", item) for item in range(4)] == [False, False, True, False]
    assert fails(plan, "generate", 2)


def test_fails_so_many_times_and_then_works() -> None:
    plan = FaultPlan.parse("upscale:0:2")
    assert [fails(plan, "upscale", 0) for _ in range(4)] == [True, True, False, False]


def test_other_items_do_not_use_the_failures_up() -> None:
    plan = FaultPlan.parse("upscale:1:1")
    assert [fails(plan, "upscale", item) for item in (0, 2, 1, 1)] == [False, False, True, False]


def test_without_an_item_the_times_are_the_jobs() -> None:
    plan = FaultPlan.parse("upscale::2")
    assert [fails(plan, "upscale", item) for item in (0, 1, 2, 0)] == [True, True, False, False]


def test_every_job_has_its_own_count() -> None:
    plan = FaultPlan.parse("upscale:0:1")
    assert [fails(plan, "upscale", 0, job_id) for job_id in (JOB, OTHER_JOB, JOB, OTHER_JOB)] == [
        True,
        True,
        False,
        False,
    ]


def test_counts_exactly_across_threads() -> None:
    plan = FaultPlan.parse("upscale::50")
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda item: fails(plan, "upscale", item), range(400))) == 50


def test_the_failure_says_where_it_comes_from() -> None:
    with pytest.raises(ProviderError, match="upscale failed at item 3, as DF_FAKE_FAIL asked for"):
        FaultPlan.parse("upscale").check("upscale", 3, JOB)


@pytest.mark.parametrize(
    "text",
    [
        "paint",
        "upscale:",
        "upscale::",
        "upscale:x",
        "upscale:-1",
        "upscale:0:0",
        "upscale:0:1:2",
        "upscale:0:",
        " upscale",
    ],
)
def test_rejects_another_form_and_shows_the_right_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"step\[:item\]\[:times\]"):
        FaultPlan.parse(text)


def test_several_faults_are_counted_each_by_itself() -> None:
    plan = FaultPlan.parse("generate:0:1,generate=hang:1:1,upscale")
    assert fails(plan, "generate", 0)
    assert not fails(plan, "generate", 0)
    assert [plan.check("generate", 1, JOB) for _ in range(2)] == ["hang", None]
    assert fails(plan, "upscale", 5)


def test_an_injury_is_told_and_not_raised() -> None:
    plan = FaultPlan.parse("generate=kill:1:1")
    assert [plan.check("generate", item, JOB) for item in (0, 1, 1)] == [None, "kill", None]
