"""Threads for work that may hang: no call waits for another."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class UnboundedThreadExecutor(Executor):
    """Runs every call at once: in an idle thread, or in a new one.

    A call that never ends costs its own thread alone: it takes no place that others wait for, and keeps no process from
    ending. How many run at once is up to the callers. A thread is kept for the next call, since starting one stops the
    caller until it runs.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call; its outcome comes with the future."""
        future: Future[T] = Future()
        with self._lock:
            found_idle = self._idle > 0
            self._idle -= found_idle
        self._calls.put((future, partial(fn, *args, **kwargs)))
        if not found_idle:
            threading.Thread(target=self._run_calls, name="render", daemon=True).start()
        return future

    def _run_calls(self) -> None:
        while True:
            self._run_call(*self._calls.get())

    def _run_call(self, future: Future[T], call: Callable[[], T]) -> None:
        settle: Callable[[], None] = lambda: None  # noqa: E731
        if future.set_running_or_notify_cancel():
            try:
                settle = partial(future.set_result, call())
            except BaseException as error:  # noqa: BLE001  # it belongs to whoever asked
                settle = partial(future.set_exception, error)
        # Before the caller knows: its next call finds this thread.
        with self._lock:
            self._idle += 1
        settle()
