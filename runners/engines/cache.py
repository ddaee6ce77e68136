"""Models that stay open: the ones used last, as many as fit beside the one in use."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast

from orchestrator.step_errors import OutOfMemory
from runners.engines.memory import is_out_of_memory
from runners.engines.protocol import ModelRef, Watch

_SIGN_S = 5.0
_SIGNS = 720
"""An hour of them: a model may be large and its disk slow, but a standstill must end some time."""


class OpenModel(Protocol):
    """A model in memory."""

    @property
    def size_bytes(self) -> int:
        """How much of the device's memory its weights take."""

    def close(self) -> None:
        """Give that memory back."""


M = TypeVar("M", bound=OpenModel)


class ModelCache:
    """Open models, the one used last at the end. budget: bytes of all but that one together; None: no bound."""

    def __init__(self, budget: int | None) -> None:
        self._budget = budget
        self._models: OrderedDict[ModelRef, OpenModel] = OrderedDict()

    def get(self, ref: ModelRef, opened: Callable[[ModelRef], M]) -> M:
        """A model, opened unless it is; what does not fit beside it is closed first.

        Raises `OutOfMemory` if it does not fit into the device's memory by itself either.
        """
        if ref in self._models:
            self._models.move_to_end(ref)
            return cast("M", self._models[ref])
        while self._budget is not None and sum(one.size_bytes for one in self._models.values()) > self._budget:
            self._close_first()
        while (model := _opened(ref, opened)) is None:
            if not self._models:
                raise OutOfMemory(f"model {ref.path} does not fit into the device's memory")
            self._close_first()
        self._models[ref] = model
        return model

    def clear(self) -> int:
        """Close every model but the one used last, as when memory runs out; answers how many."""
        others = len(self._models) - 1
        for _ in range(others):
            self._close_first()
        return others

    def _close_first(self) -> None:
        self._models.popitem(last=False)[1].close()


@contextmanager
def opening(watch: Watch) -> Iterator[None]:
    """Say now and then, from a thread, that a model is still being opened."""
    opened = threading.Event()

    def tell() -> None:
        for _ in range(_SIGNS):
            if opened.wait(_SIGN_S):
                return
            watch.opening()

    threading.Thread(target=tell, name="opening", daemon=True).start()
    try:
        yield
    finally:
        opened.set()


def _opened(ref: ModelRef, opened: Callable[[ModelRef], M]) -> M | None:
    """A model; None if memory ran out."""
    try:
        return opened(ref)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None  # its frames hold the tensors
        return None
