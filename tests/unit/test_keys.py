"""An API key event by event, and what its text may look like."""

import re
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.ids import new_id
from orchestrator import codec
from orchestrator.events import DomainEvent, JobFinish, KeyCreated, KeyRevoked
from projections.keys import TENANT_NAME_PATTERN, KeyView, evolve_key, key_text_digest, make_key_text, parse_key_id
from tests.kit import NOON, decoded_event

SECRETS = st.text("ABCXYZabcxyz0189-_", min_size=43, max_size=43)
LATER = NOON + timedelta(hours=1)


def created() -> KeyCreated:
    """The first event of a key."""
    return KeyCreated(name="ci", scopes=["jobs", "audit"], digest=key_text_digest("df_…"))


def seen(*bodies: DomainEvent) -> KeyView:
    """The key after these events, an hour apart."""
    key_id = new_id()
    found = codec.fold(
        evolve_key,
        (decoded_event(body, n, job_id=key_id, ts=NOON + timedelta(hours=n - 1)) for n, body in enumerate(bodies, 1)),
    )
    assert found is not None
    return found


def test_a_new_key_opens_what_its_scopes_say_in_its_tenant() -> None:
    key = seen(created())
    assert (key.is_active, key.name, key.tenant, sorted(key.scopes)) == (True, "ci", "default", ["audit", "jobs"])
    assert (key.created_at, key.revoked_at, key.stream_version) == (NOON, None, 1)


def test_a_revoked_key_stays_on_record_and_opens_nothing() -> None:
    key = seen(created(), KeyRevoked())
    assert (key.is_active, key.revoked_at, key.stream_version) == (False, LATER, 2)
    assert key.name == "ci"


def test_a_history_that_does_not_begin_with_a_creation_is_no_key() -> None:
    assert codec.fold(evolve_key, []) is None
    assert evolve_key(None, decoded_event(JobFinish(status="succeeded"), 1, job_id=new_id())) is None
    assert evolve_key(None, decoded_event(KeyRevoked(), 1, job_id=new_id())) is None


@given(st.uuids(), SECRETS)
def test_a_keys_text_names_it(key_id: UUID, secret: str) -> None:
    assert parse_key_id(make_key_text(key_id, secret)) == key_id


@given(st.text(max_size=100))
def test_any_other_text_names_none_and_breaks_nothing(text: str) -> None:
    assert parse_key_id(text) is None


@pytest.mark.parametrize("change", [" {}", "{}\n", "{}A", "{}=", "x{}"])
def test_a_key_is_taken_to_the_letter(change: str) -> None:
    key = make_key_text(new_id(), "s" * 43)
    assert parse_key_id(key) is not None
    assert parse_key_id(change.format(key)) is None
    assert parse_key_id(key.upper()) is None
    assert parse_key_id(key[:-1]) is None


def test_what_is_kept_of_a_key_does_not_tell_it() -> None:
    key = make_key_text(new_id(), "s" * 43)
    assert re.fullmatch("[0-9a-f]{64}", key_text_digest(key))
    assert key_text_digest(key) != key_text_digest(key[:-1] + "t")


@pytest.mark.parametrize(
    ("name", "taken"),
    [("default", True), ("a", True), ("0-9", True), ("a" * 63, True), ("a" * 64, False), ("", False), ("-a", False)]
    + [(name, False) for name in ("A", "a/b", "..", "a.b", "a b", "ä", "a\n")],
)
def test_a_tenants_name_can_be_a_part_of_an_objects_key(name: str, taken: bool) -> None:  # noqa: FBT001
    assert bool(TENANT_NAME_PATTERN.fullmatch(name)) is taken
