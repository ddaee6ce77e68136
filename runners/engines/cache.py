"""The model cache: keeps recently used models open, within a memory budget."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast

from orchestrator.step_errors import OutOfMemory
from runners.engines.memory import is_out_of_memory
from runners.engines.protocol import ModelRef, RenderListener

_KEEPALIVE_S = 5.0
_MAX_KEEPALIVES = 720
"""One hour: a large model on a slow disk takes long to open, but a hang must be detected at some time."""


class OpenModel(Protocol):
    """A model in memory."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the device's memory that its weights use."""

    def close(self) -> None:
        """Release that memory."""


M = TypeVar("M", bound=OpenModel)


class ModelCache:
    """Open models in the order of last use. budget_bytes: for all models except the last used; None: unlimited."""

    def __init__(self, budget_bytes: int | None) -> None:
        self._budget_bytes = budget_bytes
        self._models: OrderedDict[ModelRef, OpenModel] = OrderedDict()

    def get(self, ref: ModelRef, open_model: Callable[[ModelRef], M]) -> M:
        """An open model. If it must be opened, least recently used models are closed until it fits.

        Raises `OutOfMemory` if it does not fit into the device's memory even alone.
        """
        if ref in self._models:
            self._models.move_to_end(ref)
            return cast("M", self._models[ref])
        while (
            self._budget_bytes is not None
            and sum(model.size_bytes for model in self._models.values()) > self._budget_bytes
        ):
            self._close_least_recent()
        while (model := _open_unless_out_of_memory(ref, open_model)) is None:
            if not self._models:
                raise OutOfMemory(f"model {ref.path} does not fit into the device's memory")
            self._close_least_recent()
        self._models[ref] = model
        return model

    def close_others(self) -> int:
        """Close every model except the last used one, after memory ran out. Returns how many were closed."""
        others = len(self._models) - 1
        for _ in range(others):
            self._close_least_recent()
        return others

    def _close_least_recent(self) -> None:
        self._models.popitem(last=False)[1].close()


@contextmanager
def keepalive_while_opening(listener: RenderListener) -> Iterator[None]:
    """Report from a thread, every `_KEEPALIVE_S` seconds, that a model is still being opened."""
    done = threading.Event()

    def send_keepalives() -> None:
        for _ in range(_MAX_KEEPALIVES):
            if done.wait(_KEEPALIVE_S):
                return
            listener.model_still_opening()

    threading.Thread(target=send_keepalives, name="opening", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _open_unless_out_of_memory(ref: ModelRef, open_model: Callable[[ModelRef], M]) -> M | None:
    """Open a model; None if memory ran out."""
    try:
        return open_model(ref)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None  # its frames hold the tensors
        return None
