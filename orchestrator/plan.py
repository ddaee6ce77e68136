"""What a job's request means for each of its items: seeds, sizes and keys. Pure.

A history replays to the same seeds and keys, since they follow from the job's first event (and the first start of a
step) alone.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

from orchestrator.events import StepName
from orchestrator.step_kinds import STEP_KINDS, ImageSize

SEED_PRIME = 2**31 - 1
"""A Mersenne prime: derived seeds are 1 to this number."""


def item_seed(base: int, count: int, item_index: int) -> int:
    """The seed of one item.

    One item uses the base seed as it is. Several get distinct seeds 1 + (a + b·i) mod p with p = 2^31 - 1, a and b ≠ 0
    from SHA-256 of the base seed's decimal digits: distinct for all i < p, since p is prime.
    """
    if count == 1:
        return base
    digest = sha256(f"dreamforge seed {base}".encode()).digest()
    offset = int.from_bytes(digest[:8], "big") % SEED_PRIME
    stride = 1 + int.from_bytes(digest[8:16], "big") % (SEED_PRIME - 1)
    return 1 + (offset + stride * item_index) % SEED_PRIME


def output_size(parameters: Mapping[str, Any], step: StepName) -> ImageSize:
    """Width and height of what a step writes. parameters: of the job's steps by their names, in order."""
    size = 0, 0
    for name, asked in parameters.items():
        size = STEP_KINDS[name].output_size(asked, size)
        if name == step:
            break
    return size


def object_prefix(tenant: str, job_id: UUID) -> str:
    """What the S3 keys of a job's objects begin with."""
    return f"dreamforge/{tenant}/jobs/{job_id}/"


def object_key(
    tenant: str,
    job_id: UUID,
    step: StepName,
    started_at: datetime,
    item_index: int,
    size: ImageSize,
    seed: int,
    extension: str,
) -> str:
    """The S3 key of an item's object. started_at: of the step's first start, so that every attempt writes one key."""
    stamp = started_at.astimezone(UTC).strftime("%Y%m%dT%H%M%S")
    width, height = size
    return f"{object_prefix(tenant, job_id)}{step}/{stamp}_{item_index}_{width}x{height}_{seed}.{extension}"
