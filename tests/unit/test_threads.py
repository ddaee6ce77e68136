"""Calls that may hang: each runs at once, and none waits for another."""

import threading

import pytest

from runners.threads import UnboundedThreadExecutor


def test_a_thread_is_kept_for_the_next_call() -> None:
    executor = UnboundedThreadExecutor()
    assert len({executor.submit(threading.get_ident).result(20) for _ in range(20)}) == 1


def test_a_call_that_hangs_costs_its_own_thread_alone() -> None:
    """Given a call that does not end, then later ones run, in one other thread."""
    executor, release = UnboundedThreadExecutor(), threading.Event()
    hanging = executor.submit(release.wait, 20)
    others = {executor.submit(threading.get_ident).result(20) for _ in range(20)}
    assert (len(others), hanging.done()) == (1, False)
    release.set()
    assert hanging.result(20)


def test_the_error_of_a_call_is_its_callers() -> None:
    executor = UnboundedThreadExecutor()
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 // 0).result(20)
    assert executor.submit(lambda: "next").result(20) == "next"


def test_a_cancelled_call_does_not_run() -> None:
    """Given a call that is cancelled before a thread takes it, then the thread serves the next one."""
    executor, release = UnboundedThreadExecutor(), threading.Event()
    executor._idle = 1  # as if its only thread had just become idle
    cancelled = executor.submit(release.set)
    assert cancelled.cancel()
    assert executor.submit(lambda: "next").result(20) == "next"
    assert not release.is_set()
