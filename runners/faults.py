"""Failures on request, so that tests can see what a failing step does.

    upscale         every item of every upscale step fails
    generate:2      item 2 of every generate step fails
    upscale:0:1     item 0 fails once in each job, and works when the job is retried
    upscale::3      in each job the first three items that are tried fail
    generate=oom    the engine runs out of memory at every item, instead of failing; `kill` ends its process,
                    `hang` lets it stand still

A process counts for itself: another one, or the same one restarted, begins anew.
"""

import re
import threading
from collections import Counter
from typing import Literal, Self, cast
from uuid import UUID

import msgspec

from runners.errors import ProviderError

FORM = re.compile(
    r"(?P<step>generate|upscale)(=(?P<injury>oom|kill|hang))?(:(?P<item>\d+|(?=:))(:(?P<times>[1-9]\d*))?)?", re.ASCII
)


Injury = Literal["oom", "kill", "hang"]


class Fault(msgspec.Struct, frozen=True):
    """A step that shall fail: at one item or at all, so many times in each job or always.

    injury: what befalls the engine; None: it gives up.
    """

    step: str
    item_index: int | None = None
    times: int | None = None
    injury: Injury | None = None


class FaultPlan:
    """Decides whether an item fails now. Several threads may ask at once."""

    def __init__(self, fault: Fault | None = None) -> None:
        self._fault = fault
        self._failed: Counter[UUID] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a plan from its text; an empty text is a plan without failures."""
        return cls(_fault(text) if text else None)

    def check(self, step: str, item_index: int, job_id: UUID) -> Injury | None:
        """Raise `ProviderError` if this item is to fail now, or answer what is to befall the engine; and count it."""
        fault = self._fault
        if fault is None or fault.step != step or fault.item_index not in {None, item_index}:
            return None
        if fault.times is not None:
            with self._lock:
                if self._failed[job_id] == fault.times:
                    return None
                self._failed[job_id] += 1
        if fault.injury is not None:
            return fault.injury
        raise ProviderError(f"{step} failed at item {item_index}, as DF_FAKE_FAIL asked for")


def _fault(text: str) -> Fault:
    found = FORM.fullmatch(text)
    if found is None:
        raise ValueError(
            f'{text!r} is not of the form "step[:item][:times]", such as "upscale", "generate:2" or "upscale:0:1"; '
            "steps are generate and upscale (or generate=oom, =kill, =hang), items count from 0, times from 1"
        )
    step, injury, item, times = found.group("step", "injury", "item", "times")
    return Fault(step, int(item) if item else None, int(times) if times else None, cast("Injury | None", injury))
