"""The bodies that a process keeps of what it stored: how many, and for which expectation."""

import pytest

from artifacts.recent_bodies import RecentBodies, RecentBody
from artifacts.stored_object import StoredObject, stored_object


def recent(body: bytes) -> RecentBody:
    return RecentBody(body, stored_object(body), '"tag"')


@pytest.fixture
def bodies() -> RecentBodies:
    """Room for 100 bytes, in bodies of 40 bytes at most."""
    return RecentBodies(max_bytes=100, max_body_bytes=40)


def test_a_body_is_found_by_key_and_content(bodies: RecentBodies) -> None:
    kept = recent(b"pixels")
    bodies.add("a", kept)
    assert bodies.get("a", kept.stored) is kept
    assert bodies.get("b", kept.stored) is None
    assert bodies.get("a", StoredObject(6, "0" * 64)) is None
    assert bodies.get("a", StoredObject(7, kept.stored.sha256)) is None


def test_the_least_recently_used_body_makes_room(bodies: RecentBodies) -> None:
    """Given three bodies of 40 bytes, of which the first is used again, then the second is dropped."""
    kept = recent(bytes(40))
    bodies.add("first", kept)
    bodies.add("second", kept)
    assert bodies.get("first", kept.stored) is kept
    bodies.add("third", kept)
    assert [key for key in ("first", "second", "third") if bodies.get(key, kept.stored)] == ["first", "third"]


def test_no_more_is_kept_than_the_bound(bodies: RecentBodies) -> None:
    for number in range(50):
        bodies.add(str(number % 20), recent(bytes(number)))
        assert bodies.size <= 100
    bodies.clear()
    assert bodies.size == 0


def test_a_large_body_is_not_kept_and_replaces_what_was(bodies: RecentBodies) -> None:
    small = recent(b"pixels")
    bodies.add("a", small)
    bodies.add("a", recent(bytes(41)))
    assert bodies.get("a", small.stored) is None
    assert bodies.size == 0


def test_a_discarded_body_is_gone(bodies: RecentBodies) -> None:
    kept = recent(b"pixels")
    bodies.add("a", kept)
    bodies.discard("a")
    bodies.discard("a")
    assert bodies.get("a", kept.stored) is None
    assert bodies.size == 0
