"""The registry of models: appends the events that register, enable, disable and verify models.

A model is a folder or a file on this machine. Its files are hashed when it is added and when it is verified.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import msgspec

from eventstore.ids import derive_id
from eventstore.log import Append, Batch, Log
from model_registry import parameters
from model_registry.catalogue import ModelCatalogue
from model_registry.files import HUB_CACHE_FOLDER, select_unsafe_files
from model_registry.view import ModelView, files_digest
from orchestrator.events import (
    DomainEvent,
    Meta,
    ModelDisabled,
    ModelEnabled,
    ModelFile,
    ModelKind,
    ModelRegistered,
    ModelVerified,
)
from orchestrator.service import make_event
from orchestrator.step_kinds import STEP_KINDS

_SCHEMA_DIALECT_URI = "https://json-schema.org/draft/2020-12/schema"
# Request fields that select a model; the others are its parameters.
_MODEL_SELECTION_FIELDS = {"type", "model_id", "provider", "engine", "impl"}


class RegistryError(Exception):
    """The registry rejects a request; the message says why and what to do."""


class NoSuchModel(RegistryError):
    """There is no such model."""


def make_registration_event(
    source: str,
    kind: ModelKind,
    *,
    name: str | None = None,
    version: str | None = None,
    parameters_schema: dict[str, Any] | None = None,
    source_uri: str | None = None,
    trust: bool = False,
) -> ModelRegistered:
    """The event that registers a model. Reads all its files. Raises `RegistryError` if they cannot be a model.

    The defaults: name, that of the folder or file; version, the first digits of the files' digest; source_uri, the
    path. trust: allow files that may run code when they are opened.
    """
    path = resolve_path(source)
    files = hash_model_files(path)
    if not trust:
        expect_safe_files(source, (file.path for file in files))
    if kind == "generator" and path.is_file() and path.suffix.lower() != ".safetensors":
        raise RegistryError(f"{source}: a generator is a folder in diffusers' layout, or one .safetensors file.")
    name = name or (path.stem if path.is_file() else path.name)
    for text in (name, version or "", str(path)):
        _require_utf8(text)
    if parameters_schema is not None:
        try:
            parameters.expect_valid_schema(parameters_schema)
        except parameters.BadSchema as error:
            raise RegistryError(f"the parameters' schema can't be used: {error}.") from None
    return ModelRegistered(
        name=name,
        kind=kind,
        version=version or files_digest(files)[:12],
        source_uri=source_uri or path.as_uri(),
        local_path=str(path),
        files=files,
        capabilities=[step.name for step in STEP_KINDS.values() if kind in step.model_kinds],
        parameters_schema=default_schema(kind) if parameters_schema is None else parameters_schema,
        trusted=trust,
    )


def resolve_path(source: str) -> Path:
    """The absolute path of a folder or file, with links resolved. Raises `RegistryError`."""
    try:
        return Path(source).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # no home directory, or a cycle of links
        raise RegistryError(f"{source} can't be found: {error}.") from error


def expect_safe_files(source: str, paths: Iterable[str]) -> None:
    """Raise `RegistryError` if one of a model's files may run code when it is opened."""
    if found := select_unsafe_files(PurePosixPath(path) for path in paths):
        raise RegistryError(
            f"{source} holds {found[0]}, which may run code of its own when it is opened; choose one in safetensors, "
            "or say --trust if you trust whoever made it."
        )


def default_schema(kind: ModelKind) -> dict[str, Any]:
    """The default JSON Schema of the parameters of a model of this kind: the bounds of the request."""
    request = next(step.request_type for step in STEP_KINDS.values() if kind in step.model_kinds)
    schema: dict[str, Any] = msgspec.json.schema(request)["$defs"][request.__name__]
    properties = {name: value for name, value in schema["properties"].items() if name not in _MODEL_SELECTION_FIELDS}
    required = [name for name in schema["required"] if name in properties]
    return {"$schema": _SCHEMA_DIALECT_URI, "type": "object", "properties": properties, "required": required}


def hash_model_files(path: Path) -> list[ModelFile]:
    """The files of a folder, hashed and ordered by path, or a single file. Raises `RegistryError`.

    The folder `.cache/huggingface`, with huggingface_hub's own download state, is excluded.
    """
    try:
        if path.is_file():
            return [_hash_file(path, path.name)]
        if not path.is_dir():
            raise RegistryError(f"{path}: there is no such folder or file.")
        names = sorted(file.relative_to(path).as_posix() for file in _walk_files(path, path))
        if not names:
            raise RegistryError(f"{path}: the folder holds no file.")
        return [_hash_file(path / name, name) for name in names]
    except (OSError, RuntimeError) as error:  # RuntimeError: a cycle of links, before Python 3.13
        raise RegistryError(f"{path} can't be read: {error}.") from error


def find_file_problems(model: ModelView) -> list[str]:
    """The differences between a model's files and those that were registered; empty if it is intact."""
    try:
        current = {file.path: file for file in hash_model_files(Path(model.local_path))}
    except RegistryError as error:
        return [str(error).rstrip(".")]
    registered = {file.path: file for file in model.files}
    missing = [f"{path} is missing" for path in registered if path not in current]
    changed = [f"{path} has changed" for path, file in registered.items() if current.get(path, file) != file]
    added = [f"{path} is new" for path in current if path not in registered]
    return missing + changed + added


class ModelRegistry:
    """Changes to the models of a log. actor: the name of this process in the events' meta.

    Every method may raise `DatabaseUnavailable`. Methods that take a model's id or name may raise `NoSuchModel`.
    """

    def __init__(self, log: Log, actor: str) -> None:
        self._log = log
        self._models = ModelCatalogue(log)
        self._actor = actor

    async def all(self) -> list[ModelView]:
        """Every model, in order."""
        return await self._models.all()

    async def find(self, id_or_name: str) -> ModelView:
        """The model with this id, or the only model with this name."""
        models = await self._models.all()
        matches = [model for model in models if model.model_id == _parse_uuid_or_none(id_or_name)]
        matches = matches or [model for model in models if model.name == id_or_name]
        if not matches:
            raise NoSuchModel(f"There is no model {id_or_name}; see `dreamforge models list --all`.")
        if len(matches) > 1:
            ids = ", ".join(str(model.model_id) for model in matches)
            raise RegistryError(f"{len(matches)} models are called {id_or_name}; give the id of one of them: {ids}.")
        return matches[0]

    async def add(self, model: ModelRegistered, *, enabled: bool = True) -> tuple[ModelView, bool]:
        """Register a model; returns it, and whether it is new. The same kind, path and files are the same model.

        These three, and `trusted`, determine its id. Of two concurrent calls, the log therefore accepts one.
        """
        identity = (model.kind, model.local_path, files_digest(model.files), *(["trusted"] if model.trusted else []))
        model_id = derive_id(b"model", *(part.encode() for part in identity))
        is_new = await self._append_events(model_id, 0, [model, ModelEnabled()] if enabled else [model])
        return await self._load_model(model_id), is_new

    async def enable(self, model_id: UUID) -> tuple[ModelView, bool]:
        """Let jobs use a model; returns it, and whether it was disabled before."""
        return await self._append_decided_event(model_id, lambda model: None if model.enabled else ModelEnabled())

    async def disable(self, model_id: UUID) -> tuple[ModelView, bool]:
        """Stop new jobs from using a model; returns it, and whether it was enabled before."""
        return await self._append_decided_event(model_id, lambda model: ModelDisabled() if model.enabled else None)

    async def verify(self, model: ModelView) -> ModelView:
        """Read a model's files again, and record whether they match the registration."""
        problems = await asyncio.to_thread(find_file_problems, model)
        verified = ModelVerified(intact=not problems, problems=problems)
        return (await self._append_decided_event(model.model_id, lambda _: verified))[0]

    async def _append_decided_event(
        self, model_id: UUID, decide: Callable[[ModelView], DomainEvent | None]
    ) -> tuple[ModelView, bool]:
        """Decide on the newest state and append; retry after a conflict. Returns the model, and whether it changed."""
        while True:
            model = await self._load_model(model_id)
            body = decide(model)
            if body is None:
                await self._log.confirm_replicated()
                return model, False
            if await self._append_events(model_id, model.stream_version, [body]):
                return await self._load_model(model_id), True

    async def _append_events(self, model_id: UUID, expected_version: int, event_bodies: Sequence[DomainEvent]) -> bool:
        events = tuple(make_event(body, Meta(actor=self._actor)) for body in event_bodies)
        append = Append(stream=model_id, category="model", expected=expected_version, events=events)
        return (await self._log.commit(Batch(appends=[append]))).streams[model_id].committed

    async def _load_model(self, model_id: UUID) -> ModelView:
        model = await self._models.model(model_id)
        if model is None:
            raise NoSuchModel(f"There is no model {model_id}.")
        return model


def _walk_files(folder: Path, root_folder: Path) -> Iterator[Path]:
    """Every file below a folder. A link may point to a file within the root; links to folders are not followed."""
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.resolve().is_relative_to(root_folder):
            raise RegistryError(f"{entry} is a link that leads out of the folder; put a copy in its place (cp -rL).")
        if entry.is_file():
            yield entry
        elif entry.is_dir():
            if not entry.is_symlink() and entry != root_folder / HUB_CACHE_FOLDER:
                yield from _walk_files(entry, root_folder)
        else:
            raise RegistryError(f"{entry} is neither a file nor a folder.")


def _hash_file(path: Path, relative_path: str) -> ModelFile:
    _require_utf8(relative_path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ModelFile(path=relative_path, sha256=digest, size=file.tell())


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RegistryError(f"{text!r} is not valid UTF-8; choose another name for it.") from None


def _parse_uuid_or_none(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
