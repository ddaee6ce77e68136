"""Identifiers of jobs, steps, artifacts and events."""

import secrets
import time
from uuid import UUID


def new_id() -> UUID:
    """Draw a UUIDv7 (RFC 9562, section 5.7): the time in milliseconds, then 74 random bits.

    The last byte is random, so streams spread evenly over the log's partitions.
    """
    millis = time.time_ns() // 1_000_000
    value = (millis & (2**48 - 1)) << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return UUID(int=value)
