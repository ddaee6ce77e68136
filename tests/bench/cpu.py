"""CPU time by group of processes."""

from collections.abc import Mapping

import psutil

Groups = Mapping[str, list[int]]
"""Ids of the first process of each tree, by the group's name."""


def cpu_seconds(groups: Groups) -> dict[str, float]:
    """CPU seconds that each group has used, with descendants that run or that were waited for."""
    return {name: sum(map(_tree_seconds, pids)) for name, pids in groups.items()}


def cpu_ms_per_job(before: Mapping[str, float], after: Mapping[str, float], jobs: int) -> dict[str, float]:
    """CPU milliseconds per job between two measurements."""
    return {name: (after[name] - before[name]) * 1000 / jobs for name in after}


def _tree_seconds(pid: int) -> float:
    root = psutil.Process(pid)
    return sum(map(_own_seconds, [root, *root.children(recursive=True)]))


def _own_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0  # its parent waits for it, and counts it
    return float(times.user + times.system + times.children_user + times.children_system)
