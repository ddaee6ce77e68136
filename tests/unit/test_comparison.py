"""What two views differ in, place by place."""

from msgspec.structs import replace

from projections.comparison import Difference, view_differences
from projections.job_view import fold_events
from tests.kit import History


def test_equal_views_differ_nowhere() -> None:
    history = History().started("generate")
    assert view_differences(fold_events(history.events), fold_events(history.events)) == []
    assert view_differences(None, None) == []


def test_what_an_event_changed_is_named_by_its_place() -> None:
    """Given a job before and after an artifact, then the artifact and the step's count differ, and nothing else."""
    history = History(count=2).started("generate")
    before = fold_events(history.events)
    after = fold_events(history.wrote("generate", 1).events)
    found = {one.path: one for one in view_differences(before, after)}
    assert found["steps.generate.completed"] == Difference("steps.generate.completed", 0, 1)
    assert found["artifacts.generate.1.sha256"] == Difference("artifacts.generate.1.sha256", None, "0" * 64)
    assert found["version"] == Difference("version", 2, 3)
    assert {path.split(".")[0] for path in found} <= {"version", "steps", "artifacts", "updated_at"}


def test_the_order_of_artifacts_is_no_difference() -> None:
    """A view from rows has them by item, one from events as they came."""
    there = fold_events(History(count=2).started("generate").wrote("generate", 0, 1).events)
    assert there is not None
    assert view_differences(there, replace(there, artifacts=there.artifacts[::-1])) == []


def test_an_image_of_a_step_of_another_job_is_named_by_that_step() -> None:
    ours, foreign = History().started("generate"), History().item("generate", 0)
    found = view_differences(fold_events(ours.events), fold_events(ours.add(foreign).events))
    assert f"artifacts.{foreign.step_id}.0.sha256" in {one.path for one in found}


def test_a_job_that_was_not_there_differs_everywhere() -> None:
    found = view_differences(None, fold_events(History().events))
    assert {one.before for one in found} == {None}
    assert "params.prompt" in {one.path for one in found}
