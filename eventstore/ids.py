"""Identifiers of streams and events, and whatever else needs one."""

import os
import time
from hashlib import sha256
from uuid import UUID


def new_id() -> UUID:
    """Draw a UUIDv7 (RFC 9562, section 5.7): the time in milliseconds, then 74 random bits.

    The last byte is random, so streams spread evenly over the log's partitions.
    """
    millis = time.time_ns() // 1_000_000
    drawn = int.from_bytes(os.urandom(10), "big")  # one system call: a request draws several ids
    return UUID(int=(millis & (2**48 - 1)) << 80 | (drawn & ~(0b1111 << 76 | 0b11 << 62) | 0x7 << 76 | 0b10 << 62))


def derive_id(*parts: bytes) -> UUID:
    """The UUIDv8 (RFC 9562, section 5.8) that follows from some bytes: 122 bits of SHA-256 over the framed parts."""
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    value = int.from_bytes(sha256(b"dreamforge id" + framed).digest()[:16], "big")
    value = value & ~(0xF << 76 | 0b11 << 62) | 0x8 << 76 | 0b10 << 62
    return UUID(int=value)
