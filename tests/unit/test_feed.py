"""Whose events a subscriber of the whole log sees."""

import random

import pytest
from msgspec.structs import replace

from api.log_feed import _EventFilter
from eventstore.log import OPERATOR_TENANT
from tests import memory_log

EVENT = memory_log.log(random.Random(1), 1)[0]


@pytest.mark.parametrize(
    ("tenant", "category", "operator", "seen"),
    [
        ("default", "job", False, True),
        ("acme", "job", False, False),
        ("acme", "model", False, True),
        (OPERATOR_TENANT, "outbox", False, False),
        (OPERATOR_TENANT, "outbox", True, True),
        ("acme", "job", True, False),
    ],
)
def test_an_operators_events_are_seen_only_where_no_keys_are_asked_for(
    tenant: str,
    category: str,
    operator: bool,  # noqa: FBT001  # pytest passes parameters by name
    seen: bool,  # noqa: FBT001
) -> None:
    """A tenant sees its own events and models, and nothing of what was done to the service."""
    wanted = _EventFilter("default", operator, None, None)
    assert wanted.accepts(replace(EVENT, tenant=tenant, category=category)) is seen
