"""Tokens with which a browser page may read one job's live stream for ten minutes.

base64url(job id ‖ expiry ‖ key id ‖ tenant ‖ HMAC-SHA-256 of these), under a secret that all processes share.
"""

import base64
import binascii
import hmac
import time
from uuid import UUID

import msgspec

from eventstore.database import Database
from eventstore.shared_secrets import shared_secret

LIFE_S = 600
_MAC_BYTES = 32
_ID_BYTES = 16 + 8 + 16
_NO_KEY = UUID(int=0)
_MAX_LENGTH = 512


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a token. expires: Unix seconds. key_id: of the API key that requested it, if any."""

    job_id: UUID
    tenant: str
    key_id: UUID | None
    expires: int


class StreamTokens:
    """Issues and verifies tokens. All methods may raise `DatabaseUnavailable`: the secret is read once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._secret: bytes | None = None

    async def issue(self, job_id: UUID, tenant: str, key_id: UUID | None) -> tuple[str, int]:
        """A token for one job's stream, and when it expires."""
        expires = int(time.time()) + LIFE_S
        claims = Claims(job_id=job_id, tenant=tenant, key_id=key_id, expires=expires)
        return encode(claims, await self._shared_secret()), expires

    async def claims(self, token: str, job_id: str) -> Claims | None:
        """The claims of a token; None unless it is valid, not expired and for this job."""
        found = decode(token, await self._shared_secret())
        if found is None or found.expires <= time.time() or str(found.job_id) != job_id.lower():
            return None
        return found

    async def _shared_secret(self) -> bytes:
        if self._secret is None:
            self._secret = await shared_secret(self._database, "stream_token")
        return self._secret


def encode(claims: Claims, secret: bytes) -> str:
    """Claims as a token."""
    ids = claims.job_id.bytes + claims.expires.to_bytes(8, "big") + (claims.key_id or _NO_KEY).bytes
    body = ids + claims.tenant.encode()
    return base64.urlsafe_b64encode(body + _mac(body, secret)).decode().rstrip("=")


def decode(token: str, secret: bytes) -> Claims | None:
    """The claims of a token; None if it was not made with this secret."""
    if not token.isascii() or len(token) > _MAX_LENGTH:
        return None
    try:
        whole = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    body, mac = whole[:-_MAC_BYTES], whole[-_MAC_BYTES:]
    if len(body) <= _ID_BYTES or not hmac.compare_digest(mac, _mac(body, secret)):
        return None
    key_id = UUID(bytes=body[24:_ID_BYTES])
    return Claims(
        job_id=UUID(bytes=body[:16]),
        expires=int.from_bytes(body[16:24], "big"),
        key_id=None if key_id == _NO_KEY else key_id,
        tenant=body[_ID_BYTES:].decode(),
    )


def _mac(body: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, b"dreamforge stream token" + body, "sha256")
