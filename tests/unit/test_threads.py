"""Calls that may hang: each runs at once, and none waits for another."""

import threading
from queue import SimpleQueue

import pytest

from runners.threads import UnboundedThreadExecutor, _Call


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
    """Given a call that is cancelled before its thread takes it, then the thread serves the next one."""
    executor, ran = UnboundedThreadExecutor(), threading.Event()
    calls: SimpleQueue[_Call] = SimpleQueue()
    executor._idle.append(calls)
    assert executor.submit(ran.set).cancel()
    executor._idle.append(calls)
    following = executor.submit(lambda: "next")
    threading.Thread(target=executor._run_calls, args=(calls,), daemon=True).start()
    assert following.result(20) == "next"
    assert not ran.is_set()
