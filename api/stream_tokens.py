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

TOKEN_LIFETIME_S = 600
_MAC_BYTES = 32
_IDS_AND_EXPIRY_BYTES = 16 + 8 + 16
_NO_KEY_ID = UUID(int=0)
_MAX_TOKEN_LENGTH = 512


class StreamTokenClaims(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a token. key_id: of the API key that requested it, if any."""

    job_id: UUID
    tenant: str
    key_id: UUID | None
    expires_at_unix_s: int


class StreamTokens:
    """Issues and verifies tokens. All methods may raise `DatabaseUnavailable`: the secret is read once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._secret: bytes | None = None

    async def issue_token(self, job_id: UUID, tenant: str, key_id: UUID | None) -> tuple[str, int]:
        """A token for one job's stream, and when it expires."""
        expires = int(time.time()) + TOKEN_LIFETIME_S
        claims = StreamTokenClaims(job_id=job_id, tenant=tenant, key_id=key_id, expires_at_unix_s=expires)
        return encode_token(claims, await self._shared_secret()), expires

    async def verify(self, token: str, job_id: str) -> StreamTokenClaims | None:
        """The claims of a token; None unless it is valid, not expired and for this job."""
        found = decode_token(token, await self._shared_secret())
        if found is None or found.expires_at_unix_s <= time.time() or str(found.job_id) != job_id.lower():
            return None
        return found

    async def _shared_secret(self) -> bytes:
        if self._secret is None:
            self._secret = await shared_secret(self._database, "stream_token")
        return self._secret


def encode_token(claims: StreamTokenClaims, secret: bytes) -> str:
    """Claims as a token."""
    ids = claims.job_id.bytes + claims.expires_at_unix_s.to_bytes(8, "big") + (claims.key_id or _NO_KEY_ID).bytes
    body = ids + claims.tenant.encode()
    return base64.urlsafe_b64encode(body + _hmac_sha256(body, secret)).decode().rstrip("=")


def decode_token(token: str, secret: bytes) -> StreamTokenClaims | None:
    """The claims of a token; None if it was not made with this secret."""
    if not token.isascii() or len(token) > _MAX_TOKEN_LENGTH:
        return None
    try:
        whole = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    body, mac = whole[:-_MAC_BYTES], whole[-_MAC_BYTES:]
    if len(body) <= _IDS_AND_EXPIRY_BYTES or not hmac.compare_digest(mac, _hmac_sha256(body, secret)):
        return None
    key_id = UUID(bytes=body[24:_IDS_AND_EXPIRY_BYTES])
    return StreamTokenClaims(
        job_id=UUID(bytes=body[:16]),
        expires_at_unix_s=int.from_bytes(body[16:24], "big"),
        key_id=None if key_id == _NO_KEY_ID else key_id,
        tenant=body[_IDS_AND_EXPIRY_BYTES:].decode(),
    )


def _hmac_sha256(body: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, b"dreamforge stream token" + body, "sha256")
