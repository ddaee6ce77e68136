"""Signed heads of a log: what a later tail, or chains computed anew, must agree with. Pure.

An anchor names, for every partition, its newest position and the chain there, and is signed with Ed25519 (RFC 8032)
over the JSON text of all its other members, in their order and without blanks, behind the line `dreamforge anchor`.
Whoever has one, and the public key, can tell whether the log still holds all that it held then.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec.structs import asdict

from eventstore.integrity.verifier import IntegrityViolation

_SIGNED_PREFIX = b"dreamforge anchor\n"


class AnchoredEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Where a partition ended. chain: lower-case hex; empty where position is 0, of a partition without events."""

    partition: int
    position: int
    chain: str


class AnchorStatement(msgspec.Struct, frozen=True, kw_only=True):
    """What an anchor says of a log. public_key: of its signer, 32 bytes in lower-case hex."""

    format: Literal["dreamforge-anchor/1"] = "dreamforge-anchor/1"
    log_id: UUID
    signed_at: datetime
    ends: list[AnchoredEnd]
    public_key: str


class Anchor(AnchorStatement, frozen=True, kw_only=True):
    """A statement with its signature, 64 bytes in lower-case hex."""

    signature: str


class BadAnchor(Exception):
    """An anchor proves nothing; the message says why."""


def public_key_hex(key: Ed25519PrivateKey) -> str:
    """The public key of a private one, as anchors bear it."""
    return key.public_key().public_bytes_raw().hex()


def sign_anchor(key: Ed25519PrivateKey, log_id: UUID, ends: Mapping[int, tuple[int, bytes]], now: datetime) -> Anchor:
    """The anchor of a log whose partitions end so: position and chain of each."""
    anchor_statement = AnchorStatement(
        log_id=log_id,
        signed_at=now,
        ends=[
            AnchoredEnd(partition=partition, position=position, chain=chain.hex())
            for partition, (position, chain) in sorted(ends.items())
        ],
        public_key=public_key_hex(key),
    )
    return Anchor(**asdict(anchor_statement), signature=key.sign(_signed_bytes(anchor_statement)).hex())


def signed_statement(anchor: Anchor) -> AnchorStatement:
    """What was signed."""
    return AnchorStatement(**{name: getattr(anchor, name) for name in AnchorStatement.__struct_fields__})


def check_signature(anchor: Anchor, trusted_keys: Iterable[str]) -> None:
    """Raise `BadAnchor` unless one of the trusted public keys has signed this very anchor."""
    if anchor.public_key not in trusted_keys:
        raise BadAnchor(f"the anchor of {anchor.signed_at} was signed by {anchor.public_key}, which is not trusted")
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(anchor.public_key))
        key.verify(bytes.fromhex(anchor.signature), _signed_bytes(signed_statement(anchor)))
    except (ValueError, InvalidSignature):
        raise BadAnchor(f"the signature of the anchor of {anchor.signed_at} is not that of its content") from None


def find_violations(anchor: Anchor, log_id: UUID, chains: Mapping[tuple[int, int], bytes]) -> list[IntegrityViolation]:
    """Where a log no longer holds what an anchor saw. chains: its own by partition and position, where it has them.

    Raises `BadAnchor` for one of another log.
    """
    if anchor.log_id != log_id:
        raise BadAnchor(f"the anchor is of log {anchor.log_id}, this is log {log_id}")
    flaws = []
    for end in anchor.ends:
        chain = chains.get((end.partition, end.position))
        if end.position == 0 or (chain is not None and chain.hex() == end.chain):
            continue
        gone = chain is None
        flaws.append(
            IntegrityViolation(
                partition=end.partition,
                position=end.position,
                stream_id=None,
                version=None,
                field="position" if gone else "chain",
                problem=f"{'is missing' if gone else 'is not what it was'}, by the anchor of {anchor.signed_at}",
            )
        )
    return flaws


def _signed_bytes(anchor_statement: AnchorStatement) -> bytes:
    return _SIGNED_PREFIX + msgspec.json.encode(anchor_statement)
