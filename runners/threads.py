"""Threads for work that may hang: no call waits for another."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Call(NamedTuple):
    future: Future[Any]
    run: Callable[[], Any]


class UnboundedThreadExecutor(Executor):
    """Runs every call in a daemon thread that runs nothing else meanwhile.

    A call that never ends costs its own thread alone: it takes no place that others wait for, and keeps no process from
    ending. How many run at once is up to the callers. A thread whose call has ended takes the next one: to start a
    thread, the caller waits until the new one runs, and an event loop should not.
    """

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[_Call]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call; its outcome comes with the future."""
        call = _Call(Future(), partial(fn, *args, **kwargs))
        try:
            calls = self._idle.pop()
        except IndexError:
            calls = SimpleQueue()
            threading.Thread(target=self._run_calls, args=(calls,), name="render", daemon=True).start()
        calls.put(call)
        return call.future

    def _run_calls(self, calls: "SimpleQueue[_Call]") -> None:
        while True:
            future, run = calls.get()
            if not future.set_running_or_notify_cancel():
                self._idle.append(calls)
                continue
            try:
                result = run()
            except BaseException as error:  # noqa: BLE001  # it belongs to whoever asked
                settle = partial(future.set_exception, error)
            else:
                settle = partial(future.set_result, result)
                del result
            # First: who asks again once the outcome is known finds this thread.
            self._idle.append(calls)
            settle()
            del future, run, settle  # an image may hang on them
