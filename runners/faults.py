"""Injects failures on request, so that tests can see what a failing step does.

    generate        every item of every generate step fails
    generate:2      item 2 of every generate step fails
    generate:0:1    item 0 fails once in each job, and works when the job is retried
    generate::3     in each job the first three items that are tried fail
    generate=oom    the engine runs out of memory at every item, instead of failing; `kill` ends its process,
                    `hang` makes it hang
    generate:0:1,generate=oom:1:1
                    both

A process counts for itself: another one, or the same one restarted, begins anew.
"""

import re
import threading
from collections import Counter
from typing import Literal, Self, cast
from uuid import UUID

import msgspec

from orchestrator.step_errors import ProviderError
from orchestrator.step_kinds import STEP_KINDS

FAULT_REGEX = re.compile(
    r"(?P<step>\w+)(=(?P<injected>oom|kill|hang))?(:(?P<item>\d+|(?=:))(:(?P<times>[1-9]\d*))?)?", re.ASCII
)


InjectedFault = Literal["oom", "kill", "hang"]


class Fault(msgspec.Struct, frozen=True):
    """A step that shall fail: at one item or at all, so many times in each job or always.

    injected: what happens to the engine; None: the item fails.
    """

    step: str
    item_index: int | None = None
    times: int | None = None
    injected: InjectedFault | None = None


class FaultPlan:
    """Decides whether an item fails now. Several threads may ask at once."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = faults
        self._failed: Counter[tuple[Fault, UUID]] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a plan from its text; an empty text is a plan without failures."""
        return cls(*map(_parse_fault, text.split(","))) if text else cls()

    def check(self, step: str, item_index: int, job_id: UUID) -> InjectedFault | None:
        """Raise `ProviderError` if this item is to fail now, or return the fault to inject into the engine."""
        for fault in self._faults:
            if fault.step == step and fault.item_index in {None, item_index} and self._count_if_due(fault, job_id):
                if fault.injected is not None:
                    return fault.injected
                raise ProviderError(f"{step} failed at item {item_index}, as DF_FAKE_FAIL asked for")
        return None

    def _count_if_due(self, fault: Fault, job_id: UUID) -> bool:
        """Whether the fault is due now; if it is, it is counted."""
        if fault.times is None:
            return True
        with self._lock:
            if self._failed[fault, job_id] == fault.times:
                return False
            self._failed[fault, job_id] += 1
        return True


def _parse_fault(text: str) -> Fault:
    found = FAULT_REGEX.fullmatch(text)
    if found is None or found["step"] not in STEP_KINDS:
        raise ValueError(
            f'{text!r} is not of the form "step[:item][:times]", such as "generate", "generate:2" or "generate:0:1"; '
            f"steps are {' and '.join(STEP_KINDS)} (or generate=oom, =kill, =hang), items count from 0, times from 1"
        )
    step, injected, item, times = found.group("step", "injected", "item", "times")
    return Fault(
        step, int(item) if item else None, int(times) if times else None, cast("InjectedFault | None", injected)
    )
