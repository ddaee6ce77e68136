"""Models that stay open: the ones used last, as many as fit beside the one in use."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from runners.engines.messages import ModelRef


class OpenModel(Protocol):
    """A model in memory."""

    @property
    def size_bytes(self) -> int:
        """How much of the device's memory its weights take."""

    def close(self) -> None:
        """Give that memory back."""


M = TypeVar("M", bound=OpenModel)


class Shelf:
    """Open models, the one used last at the end. budget: bytes of all but that one together; None: no bound."""

    def __init__(self, budget: int | None) -> None:
        self._budget = budget
        self._models: OrderedDict[ModelRef, OpenModel] = OrderedDict()

    def take(self, ref: ModelRef, opened: Callable[[ModelRef], M]) -> M:
        """A model, opened unless it is; what does not fit beside it is closed first."""
        if ref in self._models:
            self._models.move_to_end(ref)
            return cast("M", self._models[ref])
        self._make_room()
        model = opened(ref)
        self._models[ref] = model
        return model

    def clear(self) -> int:
        """Close every model but the one used last, as when memory runs out; answers how many."""
        others = list(self._models)[:-1]
        for ref in others:
            self._models.pop(ref).close()
        return len(others)

    def _make_room(self) -> None:
        while self._budget is not None and sum(one.size_bytes for one in self._models.values()) > self._budget:
            self._models.popitem(last=False)[1].close()
