"""Which engine renders a step, and from which model."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import msgspec

from model_registry.catalogue import Models
from model_registry.files import model_files
from model_registry.parameters import violation
from model_registry.view import ModelView
from orchestrator.events.models import ModelKind
from orchestrator.state import JobState, StepState
from orchestrator.step_errors import InvalidInput, ProviderError, StepError
from runners.engines.protocol import ModelRef

_KINDS: dict[str, ModelKind] = {"gan": "gan-upscaler", "diffusion": "diffusion-upscaler"}


class Selected(msgspec.Struct, frozen=True, kw_only=True):
    """What renders a step. engine: its name in the log; source: where its weights came from; `fake` for none.

    model_id: of a registered model; the fake engine keeps the one that was asked for. model: None for an engine that
    needs none. view: of a registered model. problem: why the step can't be rendered.
    """

    engine: str
    source: str
    model_id: UUID | None = None
    model: ModelRef | None = None
    view: ModelView | None = None
    problem: StepError | None = None


RESAMPLING = Selected(engine="image", source="fake")


def painting(job: JobState) -> Selected:
    """The fake engine, whatever model the job names."""
    return Selected(engine="fake", source="fake", model_id=job.generate.model_id)


class Selection:
    """Chooses for each step. models: None: the runner has none, and paints.

    default: the generator of jobs that name none: a path, or a hub's id.
    """

    def __init__(self, models: Models | None, *, default: str | None = None) -> None:
        self._models = models
        self._default = default

    async def of(self, job: JobState, step: StepState) -> Selected:
        """What renders a step. May raise `DatabaseUnavailable`."""
        return await (self._generator(job) if step.name == "generate" else self._upscaler(job))

    async def _generator(self, job: JobState) -> Selected:
        if self._models is None:
            return painting(job)
        wanted = job.generate.model_id
        if wanted is not None:
            found = await self._models.generator(wanted)
            if found is None:
                problem = ProviderError(f"model {wanted} can't be used any more: it is disabled, damaged or gone")
                return Selected(engine="diffusers", source=str(wanted), model_id=wanted, problem=problem)
            return _selected("diffusers", found)
        if self._default is not None:
            return Selected(
                engine="diffusers", source=self._default, model=ModelRef(kind="generator", path=self._default)
            )
        found = await self._first("generator", lambda _: True)
        return painting(job) if found is None else _selected("diffusers", found)

    async def _upscaler(self, job: JobState) -> Selected:
        if job.upscale is None:
            raise RuntimeError(f"job {job.job_id} has a step upscale, but no parameters for it")
        impl = job.upscale.impl
        if impl == "image" or (impl == "auto" and self._models is None):
            return RESAMPLING
        wanted = {"scale": job.upscale.scale}
        kind = _KINDS["gan" if impl == "auto" else impl]
        found = await self._first(kind, lambda one: violation(one.parameters_schema, wanted) is None)
        if found is not None:
            return _selected("gan" if impl == "auto" else impl, found)
        if impl == "auto":
            return RESAMPLING
        why = "this runner has no models" if self._models is None else "see `dreamforge models add`"
        problem = InvalidInput(f"no {kind} for scale {job.upscale.scale} is registered and enabled; {why}")
        return Selected(engine=impl, source=impl, problem=problem)

    async def _first(self, kind: ModelKind, fits: Callable[[ModelView], bool]) -> ModelView | None:
        models = [] if self._models is None else await self._models.all()
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


def _selected(engine: str, view: ModelView) -> Selected:
    return Selected(engine=engine, source=view.source_uri, model_id=view.model_id, model=model_ref(view), view=view)


NO_MODELS = Selection(None)


class ModelFiles:
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
                _expect_no_more(view, folder)
            looks = [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in paths)]
            if self._intact.get(view.model_id) == looks:
                return
            for path, file in zip(paths, view.files, strict=True):
                with path.open("rb") as opened:
                    if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                        raise ProviderError(_told(view, f"{file.path} has changed since it was registered"))
        except OSError as error:
            raise ProviderError(_told(view, f"{error}")) from error
        self._intact[view.model_id] = looks


def _expect_no_more(view: ModelView, folder: Path) -> None:
    """Raise `ProviderError` if a model's folder holds a file more: libraries prefer some to those they know."""
    known = {file.path for file in view.files}
    if added := sorted({path.relative_to(folder).as_posix() for path in model_files(folder)} - known):
        raise ProviderError(_told(view, f"{added[0]} is new"))


def _told(view: ModelView, what: str) -> str:
    return f"model {view.name} ({view.model_id}) can't be used: {what}; see `dreamforge models verify`"
