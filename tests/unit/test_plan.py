"""Seeds, sizes and keys follow from the request alone."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.parameters import UpscaleParams
from orchestrator.plan import SEED_PRIME, item_seed, object_key, output_size
from tests.kit import generate_params

BASES = st.integers(min_value=0, max_value=2**53 - 1)


@given(BASES)
def test_a_single_item_uses_the_seed_as_it_is(base: int) -> None:
    assert item_seed(base, 1, 0) == base


@given(BASES, st.integers(min_value=2, max_value=100))
def test_several_items_get_distinct_seeds_in_range(base: int, count: int) -> None:
    seeds = [item_seed(base, count, index) for index in range(count)]
    assert len(set(seeds)) == count
    assert all(1 <= seed <= SEED_PRIME for seed in seeds)


def test_derived_seeds_are_fixed_for_ever() -> None:
    """A history written today must replay to the same seeds in years."""
    assert [item_seed(7, 3, index) for index in range(3)] == PINNED


PINNED = [1294652275, 1201280585, 1107908895]


def test_the_upscaled_size_is_the_scaled_one() -> None:
    generate = generate_params(width=640, height=384)
    asked = {"generate": generate, "upscale": UpscaleParams(scale=4, impl="auto", strict_scale=False)}
    assert output_size(asked, "generate") == (640, 384)
    assert output_size(asked, "upscale") == (2560, 1536)
    assert output_size({"generate": generate}, "generate") == (640, 384)


def test_a_key_names_tenant_job_step_start_item_size_and_seed() -> None:
    job = UUID("018f0000-0000-7000-8000-000000000001")
    started = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    expected = f"dreamforge/default/jobs/{job}/upscale/20260102T030405_3_128x64_42.png"
    assert object_key("default", job, "upscale", started, 3, (128, 64), 42, "png") == expected
    elsewhere = started.astimezone(timezone(timedelta(hours=5)))
    assert object_key("default", job, "upscale", elsewhere, 3, (128, 64), 42, "png") == expected
