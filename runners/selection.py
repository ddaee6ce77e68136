"""Which engine renders a step, and from which model."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import msgspec

from model_registry.catalogue import ModelCatalogue
from model_registry.files import find_model_files
from model_registry.view import ModelView
from orchestrator.events import ModelKind
from orchestrator.step_errors import ProviderError, StepFailure
from runners.engines.protocol import ModelRef


class SelectedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """What renders a step. engine: its name in the log; source: where its weights came from; `fake` for none.

    model_id: of a registered model; the fake engine keeps the one that was asked for. model: None for an engine that
    needs none. view: of a registered model. problem: why the step can't be rendered.
    """

    engine: str
    source: str
    model_id: UUID | None = None
    model: ModelRef | None = None
    view: ModelView | None = None
    problem: StepFailure | None = None


class ModelChoices:
    """What workers select from. models: None for a runner without models.

    default_generator: the generator of jobs that name none: a path, or a hub's id.
    """

    def __init__(self, models: ModelCatalogue | None, *, default_generator: str | None = None) -> None:
        self.models = models
        self.default_generator = default_generator

    async def first_available(self, kind: ModelKind, fits: Callable[[ModelView], bool]) -> ModelView | None:
        """The first available model of a kind that fits. May raise `DatabaseUnavailable`."""
        models = [] if self.models is None else await self.models.all()
        return next((one for one in models if one.kind == kind and one.available and fits(one)), None)


def model_ref(view: ModelView) -> ModelRef:
    """A registered model, as the engine process opens it."""
    return ModelRef(
        kind=view.kind,
        path=view.local_path,
        model_id=view.model_id,
        sha256=view.digest,
        weights_sha256=view.weights_sha256,
        trusted=view.trusted,
    )


def select_registered(engine: str, view: ModelView) -> SelectedEngine:
    """A registered model, rendering with an engine."""
    return SelectedEngine(
        engine=engine, source=view.source_uri, model_id=view.model_id, model=model_ref(view), view=view
    )


NO_MODELS = ModelChoices(None)


class ModelFilesChecker:
    """Whether models' files are what was registered. What was read once is read again when it looks changed."""

    def __init__(self) -> None:
        self._intact: dict[UUID, list[tuple[int, int]]] = {}

    def check(self, view: ModelView) -> None:
        """Raise `ProviderError` if a file of a model has changed since it was registered. Blocks."""
        folder = Path(view.local_path)
        single = folder.is_file()
        try:
            paths = [folder if single else folder / file.path for file in view.files]
            if not single:
                _expect_no_added_files(view, folder)
            looks = [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in paths)]
            if self._intact.get(view.model_id) == looks:
                return
            for path, file in zip(paths, view.files, strict=True):
                with path.open("rb") as opened:
                    if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                        raise ProviderError(_unusable_message(view, f"{file.path} has changed since it was registered"))
        except OSError as error:
            raise ProviderError(_unusable_message(view, f"{error}")) from error
        self._intact[view.model_id] = looks


def _expect_no_added_files(view: ModelView, folder: Path) -> None:
    """Raise `ProviderError` if a model's folder holds a file more: libraries prefer some to those they know."""
    known = {file.path for file in view.files}
    if added := sorted({path.relative_to(folder).as_posix() for path in find_model_files(folder)} - known):
        raise ProviderError(_unusable_message(view, f"{added[0]} is new"))


def _unusable_message(view: ModelView, problem: str) -> str:
    return f"model {view.name} ({view.model_id}) can't be used: {problem}; see `dreamforge models verify`"
