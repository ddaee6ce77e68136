"""Tokens for one job's stream: they say what was put in, and nobody else can make them."""

import base64

from hypothesis import given
from hypothesis import strategies as st

from api.stream_tokens import StreamTokenClaims, decode_token, encode_token
from eventstore.ids import new_id

SECRET = b"s" * 32
CLAIMS = st.builds(
    StreamTokenClaims,
    job_id=st.uuids(),
    tenant=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    key_id=st.none() | st.uuids(version=4),
    expires_at_unix_s=st.integers(0, 2**63 - 1),
)
ONE = StreamTokenClaims(job_id=new_id(), tenant="acme", key_id=new_id(), expires_at_unix_s=2**40)


@given(CLAIMS)
def test_a_token_vouches_for_what_it_was_made_of(claims: StreamTokenClaims) -> None:
    """And fits into a URL as it stands."""
    token = encode_token(claims, SECRET)
    assert decode_token(token, SECRET) == claims
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(CLAIMS, st.binary(max_size=64))
def test_another_secret_makes_other_tokens(claims: StreamTokenClaims, secret: bytes) -> None:
    assert decode_token(encode_token(claims, secret), SECRET) is None


def test_no_bit_of_a_token_can_be_changed() -> None:
    token = encode_token(ONE, SECRET)
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert decode_token(base64.urlsafe_b64encode(changed).decode().rstrip("="), SECRET) is None


@given(st.text(max_size=700) | st.binary(max_size=400).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_any_other_text_is_no_token_and_breaks_nothing(text: str) -> None:
    assert decode_token(text, SECRET) is None


def test_a_token_that_was_cut_off_or_grew_is_none() -> None:
    token = encode_token(ONE, SECRET)
    for wrong in (token[:-4], token[4:], f"{token}AAAA", f"AAAA{token}", f"{token} ", f"{token}=" * 2):
        assert decode_token(wrong, SECRET) is None
