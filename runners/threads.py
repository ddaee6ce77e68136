"""Threads for work that may hang: each call gets one of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ThreadPerCallExecutor(Executor):
    """Runs every call in a new daemon thread.

    A call that never ends costs its own thread alone: it takes no place that others wait for, and keeps no process from
    ending. How many run at once is up to the callers.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call; its outcome comes with the future."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  # it belongs to whoever asked
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, name="render", daemon=True).start()
        return future
