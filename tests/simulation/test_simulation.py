"""The invariants hold under any interleaving, and the simulation finds planted bugs."""

import secrets

import pytest

from tests.simulation.__main__ import simulate
from tests.simulation.episode import Episode
from tests.simulation.invariants import Violation
from tests.simulation.planted_bugs import PLANTED_BUGS

STEPS = 30_000
BOUND = 1_000_000
"""Steps within which a bug must be found: less than a minute's worth."""


def test_the_invariants_hold_in_episodes_that_are_always_the_same() -> None:
    """Given fixed seeds, then nothing is lost, nothing happens twice, and everything comes to its end."""
    assert simulate(STEPS, 1)["jobs"] > 50


def test_the_invariants_hold_in_episodes_that_nobody_has_seen() -> None:
    """Given other seeds each time, then likewise; a violation says how to see it again."""
    assert simulate(STEPS, secrets.randbelow(2**32))["jobs"] > 50


def test_an_episode_is_replayed_from_its_seed() -> None:
    """Given the same seed twice, then the same happens twice."""
    assert Episode(7).run() == Episode(7).run()


@pytest.mark.parametrize("bug", PLANTED_BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """Given a protocol with one bug, then an invariant is violated before long."""
    with pytest.raises(Violation):
        simulate(BOUND, 1, PLANTED_BUGS[bug])
