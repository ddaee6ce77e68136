"""Signs anchors, and stores them in the log and in the object store.

heads ─▶ sign ─▶ append anchor.signed ─▶ anchors/{log}/{time}.json
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
from orchestrator.events import AnchorSigned
from orchestrator.service import append_unconditionally
from projections.anchor_queries import ANCHOR_STREAM_ID, newest_anchors

_log = structlog.get_logger(__name__)


def create_anchor_key(file: Path) -> Ed25519PrivateKey:
    """Create a key in a new file that only its owner can read: PKCS #8 in PEM (RFC 5958, RFC 8410)."""
    key = Ed25519PrivateKey.generate()
    file.touch(mode=0o600, exist_ok=False)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def read_anchor_key(file: Path) -> Ed25519PrivateKey:
    """Read the key from a file. Raises `SettingsError`."""
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(
            f"DF_ANCHOR_KEY: {file} holds no key ({error}); make one by `dreamforge audit key`."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"DF_ANCHOR_KEY: {file} holds another kind of key; make one by `dreamforge audit key`.")
    return key


async def sign_anchor(log: Log, object_store: ObjectStore | None, key: Ed25519PrivateKey, actor: str) -> Anchor:
    """Sign the log's current heads. Appends the anchor to the log, and writes it to the object store if given."""
    head = await log.read_head()
    ends = {partition: (end.position, end.chain) for partition, end in head.ends.items()}
    signed = anchors.sign_anchor(key, head.log_id, ends, datetime.now(UTC))
    await append_unconditionally(log, ANCHOR_STREAM_ID, "anchor", AnchorSigned(anchor=signed), actor)
    if object_store is not None:
        key_of_object = f"anchors/{signed.log_id}/{signed.signed_at:%Y-%m-%dT%H-%M-%S.%fZ}.json"
        body = msgspec.json.encode(signed)
        if await object_store.put(key_of_object, body, "application/json") != stored_object(body):
            raise ObjectStoreUnavailable(f"another object lies under {key_of_object}: the anchor is in the log alone")
    return signed


def load_signing_key(settings: Settings) -> Ed25519PrivateKey | None:
    """The anchor key; None if the settings request no anchors. Raises `SettingsError`."""
    if settings.anchor_every_s is None:
        return None
    if settings.anchor_key is None:
        raise SettingsError("DF_ANCHOR_EVERY_S asks for anchors, and DF_ANCHOR_KEY names no key to sign them with.")
    return read_anchor_key(settings.anchor_key)


async def sign_anchors_regularly(
    log: Log, object_store: ObjectStore | None, key: Ed25519PrivateKey, actor: str, every_s: float
) -> None:
    """Sign an anchor every `every_s` seconds, unless there are no new events. Runs until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        try:
            if await _is_anchor_due(log, every_s):
                signed = await sign_anchor(log, object_store, key, actor)
                _log.info("anchor signed", anchor=msgspec.to_builtins(signed))
        except (EventStoreError, ObjectStoreUnavailable) as error:
            _log.warning("no anchor could be signed", error=str(error))


async def _is_anchor_due(log: Log, every_s: float) -> bool:
    """Whether there are events after the last anchor, and it is older than half the interval."""
    newest = await newest_anchors(log, 1)
    if not newest:
        return True
    last = newest[0]
    if (datetime.now(UTC) - last.signed_at).total_seconds() < every_s / 2:
        return False
    ends = (await log.read_head()).ends
    return sum(end.position for end in ends.values()) > sum(end.position for end in last.ends) + 1
