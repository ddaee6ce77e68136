"""Coroutines that are run one effect at a time, by whoever picks them."""

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
Fate = Literal["done", "answer lost", "never sent"]


class Effect(Generic[T]):
    """Something that an actor does to the world when it is next picked; the answer comes with the pick after that.

    failure: what an actor sees of an effect that went wrong; None: it never hears of it, but tries until it is done.
    ready: until when the actor can't be picked.
    """

    __slots__ = ("failure", "name", "perform", "ready")

    def __init__(
        self,
        name: str,
        perform: Callable[[], T],
        *,
        failure: Exception | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        self.name = name
        self.perform = perform
        self.failure = failure
        self.ready = ready

    def __await__(self) -> Generator["Effect[T]", T, T]:
        """Hand the effect to the one who runs the actor."""
        answer = yield self
        return answer


class Actor:
    """A coroutine under way. done: it has ended; last: its latest effect's name."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._work = work
        self._pending: Effect[Any] | None = None
        self._answer: Any = None
        self._error: Exception | None = None
        self.done = False
        self.last = "start"

    @property
    def runnable(self) -> bool:
        """May it be picked?"""
        waiting = None if self._pending is None else self._pending.ready
        return not self.done and (waiting is None or waiting())

    def step(self, fate: Fate) -> None:
        """Go on with the last answer to the next effect, and have that."""
        effect = self._pending or self._resume()
        self._pending = None
        if effect is None:
            return
        self.last = effect.name
        if effect.ready is not None:
            self._wait(effect)
        elif fate == "done":
            self._have(effect)
        else:
            if fate == "answer lost":
                self._have(effect)
            self._answer = None
            self._error = effect.failure
            if effect.failure is None:
                self._pending = effect

    def crash(self) -> None:
        """End at once; an effect that was had stays."""
        self.done = True
        self._work.close()

    def _wait(self, effect: Effect[Any]) -> None:
        if effect.ready is not None and not effect.ready():
            self._pending = effect
        else:
            self._answer = effect.perform()

    def _have(self, effect: Effect[Any]) -> None:
        try:
            self._answer = effect.perform()
        except AssertionError:
            raise
        except Exception as error:  # noqa: BLE001  # it belongs to the actor
            self._error = error

    def _resume(self) -> Effect[Any] | None:
        answer, error = self._answer, self._error
        self._answer = self._error = None
        try:
            if error is not None:
                effect: Effect[Any] = self._work.throw(error)
            else:
                effect = self._work.send(answer)
        except StopIteration:
            self.done = True
            return None
        return effect
