"""Reads of the registry of models. Each read folds the log: there are few models, and their histories are short."""

from uuid import UUID

from eventstore.log import Log
from model_registry.view import ModelView, evolve, sort_in_default_order
from orchestrator.service import fold_or_none


class ModelCatalogue:
    """The models of a log. Reads are never stale. Every method may raise `DatabaseUnavailable`."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def all(self) -> list[ModelView]:
        """Every model, in order."""
        histories = await self._log.read_category("model")
        views = (fold_or_none(evolve, history) for history in histories.values())
        return sort_in_default_order(model for model in views if model is not None)

    async def model(self, model_id: UUID) -> ModelView | None:
        """One model; None if no model has this id."""
        history = await self._log.read_stream(model_id)
        return fold_or_none(evolve, [event for event in history if event.category == "model"])

    async def generator(self, model_id: UUID) -> ModelView | None:
        """The model, if it is available and can generate; else None."""
        model = await self.model(model_id)
        return model if model is not None and model.available and "generate" in model.capabilities else None
