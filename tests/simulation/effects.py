"""Coroutines that are run one effect at a time by a scheduler."""

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
EffectOutcome = Literal["done", "answer lost", "never sent"]


class Effect(Generic[T]):
    """An operation on the world. It runs when its actor is next picked; the actor gets the result at the pick after.

    failure: the exception that the actor gets if the effect fails; None: the effect is repeated until it succeeds.
    ready: the actor cannot be picked until it returns True.
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
        """Yield the effect to the scheduler."""
        answer = yield self
        return answer


class Actor:
    """A running coroutine. done: it has ended. last: the name of its latest effect."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._work = work
        self._pending: Effect[Any] | None = None
        self._answer: Any = None
        self._error: Exception | None = None
        self.done = False
        self.last = "start"

    @property
    def runnable(self) -> bool:
        """Whether it can be picked."""
        waiting = None if self._pending is None else self._pending.ready
        return not self.done and (waiting is None or waiting())

    def step(self, outcome: EffectOutcome) -> None:
        """Resume the coroutine with the last result, and run its next effect."""
        effect = self._pending or self._resume()
        self._pending = None
        if effect is None:
            return
        self.last = effect.name
        if effect.ready is not None:
            self._wait(effect)
        elif outcome == "done":
            self._perform(effect)
        else:
            if outcome == "answer lost":
                self._perform(effect)
            self._answer = None
            self._error = effect.failure
            if effect.failure is None:
                self._pending = effect

    def crash(self) -> None:
        """End at once. Effects that have run stay."""
        self.done = True
        self._work.close()

    def _wait(self, effect: Effect[Any]) -> None:
        if effect.ready is not None and not effect.ready():
            self._pending = effect
        else:
            self._answer = effect.perform()

    def _perform(self, effect: Effect[Any]) -> None:
        try:
            self._answer = effect.perform()
        except AssertionError:
            raise
        except Exception as error:  # noqa: BLE001  # it is raised in the actor
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
