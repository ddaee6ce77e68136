"""The state of a model, folded from its events, and the order of models. Pure."""

from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import asdict, replace

from orchestrator.events import (
    DecodedEvent,
    ModelDisabled,
    ModelEnabled,
    ModelFile,
    ModelKind,
    ModelRegistered,
    ModelVerified,
    StepName,
)

_WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model. version: the model's own. stream_version: of its stream.

    installed: its files were intact when they were last read; else `problems` says what differed.
    trusted: files that may run code when they are opened may be opened.
    """

    model_id: UUID
    stream_version: int
    name: str
    kind: ModelKind
    version: str
    source_uri: str
    local_path: str
    files: tuple[ModelFile, ...]
    capabilities: tuple[StepName, ...]
    parameters_schema: dict[str, Any]
    registered_at: datetime
    trusted: bool = False
    installed: bool = True
    enabled: bool = False
    problems: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of its files, as `files_digest`."""
        return files_digest(self.files)

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 of its weights file, by which galleries identify models; None unless there is exactly one."""
        weights = [file.sha256 for file in self.files if file.path.lower().endswith(_WEIGHTS_SUFFIXES)]
        return weights[0] if len(weights) == 1 else None

    @property
    def available(self) -> bool:
        """Whether a job may use it."""
        return self.installed and self.enabled


def files_digest(files: Iterable[ModelFile]) -> str:
    """SHA-256 of a list of files and their hashes, as `sha256sum` prints it, in lower-case hex."""
    lines = (f"{file.sha256}  {file.path}\n" for file in files)
    return sha256("".join(lines).encode()).hexdigest()


def evolve(model: ModelView | None, event: DecodedEvent) -> ModelView | None:
    """The model after one more event; None until it is registered."""
    if model is None:
        return _apply_registered(event, event.body) if isinstance(event.body, ModelRegistered) else None
    model = replace(model, stream_version=event.version)
    match event.body:
        case ModelEnabled():
            return replace(model, enabled=True)
        case ModelDisabled():
            return replace(model, enabled=False)
        case ModelVerified() as body:
            return replace(model, installed=body.intact, problems=tuple(body.problems))
        case _:
            return model


def sort_in_default_order(models: Iterable[ModelView]) -> list[ModelView]:
    """Generators first, then by registration time. The first available generator is the default model."""
    return sorted(models, key=lambda model: ("generate" not in model.capabilities, model.registered_at, model.model_id))


def _apply_registered(event: DecodedEvent, body: ModelRegistered) -> ModelView:
    lists = {"files": tuple(body.files), "capabilities": tuple(body.capabilities)}
    same = asdict(body) | lists
    return ModelView(**same, model_id=event.stream_id, stream_version=event.version, registered_at=event.ts)
