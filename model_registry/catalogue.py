"""Reads of the registry of models. Each read folds the log: there are few models, and their histories are short."""

from collections.abc import Sequence
from uuid import UUID

import structlog

from eventstore.events import RecordedEvent
from eventstore.log import Log
from model_registry.view import ModelView, fold, in_default_order
from orchestrator import codec

_log = structlog.get_logger(__name__)


class Models:
    """The models of a log. Reads are never stale. Every method may raise `DatabaseUnavailable`."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def all(self) -> list[ModelView]:
        """Every model, in order."""
        histories = await self._log.category("model")
        views = (_fold_or_none(history) for history in histories.values())
        return in_default_order(model for model in views if model is not None)

    async def model(self, model_id: UUID) -> ModelView | None:
        """One model; None if no model has this id."""
        history = await self._log.stream(model_id)
        return _fold_or_none([event for event in history if event.category == "model"])

    async def generator(self, model_id: UUID) -> ModelView | None:
        """The model, if it is available and can generate; else None."""
        model = await self.model(model_id)
        return model if model is not None and model.available and "generate" in model.capabilities else None


def _fold_or_none(history: Sequence[RecordedEvent]) -> ModelView | None:
    """The model of a history; None, with a log line, if the history cannot be read."""
    try:
        return fold(map(codec.decode_event, history))
    except Exception as error:  # noqa: BLE001  # a fold may raise anything on unexpected data
        _log.warning("a model can't be read", model_id=str(history[0].stream_id), error=str(error))
        return None
