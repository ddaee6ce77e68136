"""Only whom we trust can vouch for a log, and only for what was signed."""

import random
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from eventstore.integrity import anchors
from eventstore.integrity.anchors import Anchor, AnchoredEnd
from eventstore.integrity.bundle import BundleHeader, BundleWriter, verify_bundle
from tests import memory_log
from tests.kit import NOON

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TRUSTED = {anchors.public_key_hex(KEY)}
ROWS = memory_log.log(random.Random(8), 20)
ANCHOR = anchors.sign_anchor(KEY, memory_log.LOG.log_id, memory_log.ends(ROWS), NOON)


def test_a_signed_anchor_is_believed() -> None:
    anchors.check_signature(ANCHOR, TRUSTED)
    assert anchors.find_violations(ANCHOR, memory_log.LOG.log_id, memory_log.chains(ROWS)) == []


def test_a_strangers_anchor_is_not() -> None:
    stranger = anchors.sign_anchor(Ed25519PrivateKey.generate(), memory_log.LOG.log_id, memory_log.ends(ROWS), NOON)
    with pytest.raises(anchors.BadAnchor, match="not trusted"):
        anchors.check_signature(stranger, TRUSTED)
    with pytest.raises(anchors.BadAnchor, match="signature"):
        anchors.check_signature(replace(stranger, public_key=ANCHOR.public_key), TRUSTED)


CHANGES: dict[str, Any] = {
    "log_id": UUID(int=1),
    "signed_at": NOON + timedelta(microseconds=1),
    "ends": [AnchoredEnd(partition=0, position=1, chain="00")],
    "signature": "00" * 64,
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_anchor_is_rejected(field: str) -> None:
    with pytest.raises(anchors.BadAnchor, match="signature"):
        anchors.check_signature(replace(ANCHOR, **{field: CHANGES[field]}), TRUSTED)


@pytest.mark.parametrize("signature", ["", "x", "00", "é" * 64])
def test_what_is_no_signature_is_rejected(signature: str) -> None:
    with pytest.raises(anchors.BadAnchor):
        anchors.check_signature(replace(ANCHOR, signature=signature), TRUSTED)


def test_an_anchor_of_another_log_says_so() -> None:
    with pytest.raises(anchors.BadAnchor, match="this is log"):
        anchors.find_violations(ANCHOR, UUID(int=1), {})


def bundle(rows: list[Any], *, minutes: int = 1) -> list[bytes]:
    """A bundle of all, written some minutes after the anchor was signed."""
    exported_at = NOON + timedelta(minutes=minutes)
    writer = BundleWriter(
        BundleHeader(log=memory_log.LOG, exported_at=exported_at, stream=None, since=NOON, private=False)
    )
    return [writer.header_line(), *map(writer.event_line, memory_log.read(memory_log.ordered(rows))), writer.end_line()]


def problems(rows: list[Any], anchor: Anchor = ANCHOR, **more: int) -> list[str]:
    """What a bundle's verification says, held against an anchor."""
    return [flaw.problem for flaw in verify_bundle(bundle(rows, **more), [anchor]).flaws]


def test_a_bundle_is_held_against_an_anchor() -> None:
    """Given a bundle without the newest events, or rewritten to its end, then only the anchor tells."""
    assert problems(ROWS) == []
    end = memory_log.ends(ROWS)[0]
    short = [row for row in ROWS if (row.partition, row.position) != (0, end[0])]
    assert verify_bundle(bundle(short)).flaws == []
    [missing] = problems(short)
    assert missing.startswith(f"partition 0, position {end[0]}: position: is missing")
    forged: list[Any] = []
    for row in [replace(ROWS[0], data='{"forged":true}'), *ROWS[1:]]:
        forged.append(memory_log.chained(row, forged))
    assert verify_bundle(bundle(forged)).flaws == []
    assert "chain: is not what it was" in problems(forged)[0]


def test_a_bundle_from_before_the_anchor_may_be_shorter() -> None:
    assert problems(ROWS[:10], minutes=-1) == []


def test_a_bundle_tells_how_many_events_an_anchor_vouches_for() -> None:
    """Given an anchor from the midst of a bundle, then it has seen what came before in each partition, and no more."""
    assert verify_bundle(bundle(ROWS), [ANCHOR]).vouched == len(ROWS)
    assert verify_bundle(bundle(ROWS)).vouched == 0
    earlier = ROWS[: len(ROWS) // 2]
    signed = anchors.sign_anchor(KEY, memory_log.LOG.log_id, memory_log.ends(earlier), NOON)
    assert verify_bundle(bundle(ROWS), [signed]).vouched == len(earlier)
    assert verify_bundle(bundle(ROWS[:10], minutes=-1), [ANCHOR]).vouched == 0
