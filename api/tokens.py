"""Tokens for one job's stream, for browsers: whoever may read a job may let a page follow it for ten minutes.

base64url(job id ‖ expiry ‖ key id ‖ tenant ‖ HMAC-SHA-256 of these), under a secret that all servers share.
"""

import base64
import binascii
import hmac
import time
from uuid import UUID

import msgspec

from eventstore.database import Database

LIFE_S = 600
_MAC = 32
_IDS = 16 + 8 + 16
_NOBODY = UUID(int=0)
_LONGEST = 512


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a token vouches for. expires: Unix seconds. key_id: of the key that it was asked for with, if any."""

    job_id: UUID
    tenant: str
    key_id: UUID | None
    expires: int


class StreamTokens:
    """Makes and reads tokens. database: holds the secret; asked once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._secret: bytes | None = None

    async def issue(self, job_id: UUID, tenant: str, key_id: UUID | None) -> tuple[str, int]:
        """A token for one job's stream, and when it expires. May raise `DatabaseUnavailable`."""
        expires = int(time.time()) + LIFE_S
        claims = Claims(job_id=job_id, tenant=tenant, key_id=key_id, expires=expires)
        return encode(claims, await self._known()), expires

    async def claims(self, token: str, job_id: str) -> Claims | None:
        """What a token vouches for; None unless it is ours, still holds, and is for this job."""
        found = decode(token, await self._known())
        if found is None or found.expires <= time.time() or str(found.job_id) != job_id.lower():
            return None
        return found

    async def _known(self) -> bytes:
        if self._secret is None:
            rows = await self._database.read("select secret from eventstore.secrets where name = 'stream_token'")
            self._secret = rows[0]["secret"]
        return self._secret


def encode(claims: Claims, secret: bytes) -> str:
    """Claims as a token."""
    ids = claims.job_id.bytes + claims.expires.to_bytes(8, "big") + (claims.key_id or _NOBODY).bytes
    body = ids + claims.tenant.encode()
    return base64.urlsafe_b64encode(body + _mac(body, secret)).decode().rstrip("=")


def decode(token: str, secret: bytes) -> Claims | None:
    """The claims of a token; None for one that was not made with this secret."""
    if not token.isascii() or len(token) > _LONGEST:
        return None
    try:
        whole = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    body, mac = whole[:-_MAC], whole[-_MAC:]
    if len(body) <= _IDS or not hmac.compare_digest(mac, _mac(body, secret)):
        return None
    key_id = UUID(bytes=body[24:_IDS])
    return Claims(
        job_id=UUID(bytes=body[:16]),
        expires=int.from_bytes(body[16:24], "big"),
        key_id=None if key_id == _NOBODY else key_id,
        tenant=body[_IDS:].decode(),
    )


def _mac(body: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, b"dreamforge stream token" + body, "sha256")
