"""A model as its users see it, and the order of models. Pure."""

from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from orchestrator.events.base import DecodedEvent
from orchestrator.events.models import ModelDisabled, ModelEnabled, ModelFile, ModelKind, ModelRegistered, ModelVerified
from orchestrator.events.steps import StepName

_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model. version: the model's own; stream_version: of its history.

    installed: its files were intact when they were last read; else `problems` says what was wrong.
    trusted: files of it that may run code when they are opened may be opened.
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
        """SHA-256 of the list of its files and their hashes, as `sha256sum` prints it, lower-case hex."""
        return files_digest(self.files)

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 of its file of weights, by which others know a model; None where there are several, or none."""
        weights = [file.sha256 for file in self.files if file.path.lower().endswith(_WEIGHTS)]
        return weights[0] if len(weights) == 1 else None

    @property
    def available(self) -> bool:
        """May a job use it?"""
        return self.installed and self.enabled


def files_digest(files: Iterable[ModelFile]) -> str:
    """SHA-256 of a list of files and their hashes, as `sha256sum` prints it, in lower-case hex."""
    lines = (f"{file.sha256}  {file.path}\n" for file in files)
    return sha256("".join(lines).encode()).hexdigest()


def view(events: Iterable[DecodedEvent]) -> ModelView | None:
    """The model after a whole history; None for one that is not a model's."""
    seen: ModelView | None = None
    for event in events:
        seen = evolve(seen, event)
    return seen


def evolve(seen: ModelView | None, event: DecodedEvent) -> ModelView | None:
    """The model after one more event; None until it is registered."""
    if seen is None:
        return _registered(event, event.body) if isinstance(event.body, ModelRegistered) else None
    seen = replace(seen, stream_version=event.version)
    match event.body:
        case ModelEnabled():
            return replace(seen, enabled=True)
        case ModelDisabled():
            return replace(seen, enabled=False)
        case ModelVerified() as body:
            return replace(seen, installed=body.intact, problems=tuple(body.problems))
        case _:
            return seen


def in_order(models: Iterable[ModelView]) -> list[ModelView]:
    """Generators before upscalers, each as they were registered: the first available generator is the default one."""
    return sorted(models, key=lambda one: ("generate" not in one.capabilities, one.registered_at, one.model_id))


def _registered(event: DecodedEvent, body: ModelRegistered) -> ModelView:
    return ModelView(
        model_id=event.stream_id,
        stream_version=event.version,
        name=body.name,
        kind=body.kind,
        version=body.version,
        source_uri=body.source_uri,
        local_path=body.local_path,
        files=tuple(body.files),
        capabilities=tuple(body.capabilities),
        parameters_schema=body.parameters_schema,
        registered_at=event.ts,
        trusted=body.trusted,
    )
