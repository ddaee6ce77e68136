"""Signs the log's heads, and puts what was signed where it can be found: in the log itself, and in the object store.

head ─▶ sign ─▶ append anchor.signed ─▶ anchors/{log}/{time}.json
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from artifacts.errors import ObjectStoreUnavailable
from artifacts.object_store import ObjectStore, stored_object
from dreamforge.settings import Settings, SettingsError
from eventstore.errors import EventStoreError
from eventstore.integrity import anchors
from eventstore.integrity.anchors import Anchor
from eventstore.log import Log
from orchestrator.events.operations import AnchorSigned
from orchestrator.service import append_unconditionally
from projections.anchor_queries import ANCHOR_STREAM, newest_anchors

_log = structlog.get_logger(__name__)


def make_key(file: Path) -> Ed25519PrivateKey:
    """Draw a key and write it to a new file, readable by its owner alone: PKCS #8 in PEM (RFC 5958, RFC 8410)."""
    key = Ed25519PrivateKey.generate()
    file.touch(mode=0o600, exist_ok=False)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def read_key(file: Path) -> Ed25519PrivateKey:
    """The key of a file."""
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(
            f"DF_ANCHOR_KEY: {file} holds no key ({error}); make one by `dreamforge audit key`."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"DF_ANCHOR_KEY: {file} holds another kind of key; make one by `dreamforge audit key`.")
    return key


async def anchor(log: Log, store: ObjectStore | None, key: Ed25519PrivateKey, actor: str) -> Anchor:
    """Sign the log's heads as they are now; note it in the log, and in the object store where one is given."""
    head = await log.head()
    ends = {partition: (end.position, end.chain) for partition, end in head.ends.items()}
    signed = anchors.sign(key, head.log_id, ends, datetime.now(UTC))
    await append_unconditionally(log, ANCHOR_STREAM, "anchor", AnchorSigned(anchor=signed), actor)
    if store is not None:
        key_of_object = f"anchors/{signed.log_id}/{signed.signed_at:%Y-%m-%dT%H-%M-%S.%fZ}.json"
        body = msgspec.json.encode(signed)
        if await store.put(key_of_object, body, "application/json") != stored_object(body):
            raise ObjectStoreUnavailable(f"another object lies under {key_of_object}: the anchor is in the log alone")
    return signed


def signer(settings: Settings) -> Ed25519PrivateKey | None:
    """The key that signs, where the settings ask for anchors."""
    if settings.anchor_every_s is None:
        return None
    if settings.anchor_key is None:
        raise SettingsError("DF_ANCHOR_EVERY_S asks for anchors, and DF_ANCHOR_KEY names no key to sign them with.")
    return read_key(settings.anchor_key)


async def anchor_regularly(
    log: Log, store: ObjectStore | None, key: Ed25519PrivateKey, actor: str, every_s: float
) -> None:
    """Sign again and again, unless nothing came since the last anchor, whoever signed it. Runs until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        try:
            if await _is_due(log, every_s):
                signed = await anchor(log, store, key, actor)
                _log.info("anchor signed", anchor=msgspec.to_builtins(signed))
        except (EventStoreError, ObjectStoreUnavailable) as error:
            _log.warning("no anchor could be signed", error=str(error))


async def _is_due(log: Log, every_s: float) -> bool:
    """Did something other than anchors come since the last one, and is that long enough ago?"""
    found = await newest_anchors(log, 1)
    if not found:
        return True
    last = found[0]
    if (datetime.now(UTC) - last.signed_at).total_seconds() < every_s / 2:
        return False
    ends = (await log.head()).ends
    return sum(end.position for end in ends.values()) > sum(end.position for end in last.ends) + 1
