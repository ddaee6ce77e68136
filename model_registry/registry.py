"""The registry of models: what each is made of, and the events that tell of it.

A model is a folder, or a file, of this machine. What it holds is hashed when it is added, and again to verify it.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import msgspec

from eventstore.ids import derived_id
from eventstore.log import Append, Batch, Log
from model_registry import parameters
from model_registry.catalogue import Models
from model_registry.files import HUB_NOTES, risky
from model_registry.view import ModelView, files_digest
from orchestrator.events.base import DomainEvent, Meta
from orchestrator.events.models import ModelDisabled, ModelEnabled, ModelFile, ModelKind, ModelRegistered, ModelVerified
from orchestrator.service import event
from orchestrator.step_kinds import STEP_KINDS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Of a request, what says which model rather than what it is to do.
_CHOICES = {"type", "model_id", "provider", "engine", "impl"}


class RegistryError(Exception):
    """The registry refuses; the message says why, and what to do."""


class NoSuchModel(RegistryError):
    """There is no such model."""


def registration(
    source: str,
    kind: ModelKind,
    *,
    name: str | None = None,
    version: str | None = None,
    parameters_schema: dict[str, Any] | None = None,
    source_uri: str | None = None,
    trust: bool = False,
) -> ModelRegistered:
    """What is to be known of a model: reads all its files. Raises `RegistryError` for what can't be a model.

    name, version, source_uri: unless given, that of the folder or file, the beginning of a digest of all that it holds,
    and where it lies. trust: files that may run code when they are opened are let in.
    """
    path = resolved(source)
    files = inventory(path)
    if not trust:
        expect_safe(source, (file.path for file in files))
    if kind == "generator" and path.is_file() and path.suffix.lower() != ".safetensors":
        raise RegistryError(f"{source}: a generator is a folder in diffusers' layout, or one .safetensors file.")
    name = name or (path.stem if path.is_file() else path.name)
    for text in (name, version or "", str(path)):
        _expect_unicode(text)
    if parameters_schema is not None:
        try:
            parameters.check(parameters_schema)
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


def resolved(source: str) -> Path:
    """Where a folder or file lies that a path names. Raises `RegistryError`."""
    try:
        return Path(source).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a home that isn't there, links in a circle
        raise RegistryError(f"{source} can't be found: {error}.") from error


def expect_safe(source: str, paths: Iterable[str]) -> None:
    """Raise `RegistryError` if one of a model's files may run code when it is opened."""
    if found := risky(PurePosixPath(path) for path in paths):
        raise RegistryError(
            f"{source} holds {found[0]}, which may run code of its own when it is opened; choose one in safetensors, "
            "or say --trust if you trust whoever made it."
        )


def default_schema(kind: ModelKind) -> dict[str, Any]:
    """The JSON Schema of what may be asked of a model of some kind: the request's own bounds."""
    request = next(step.request for step in STEP_KINDS.values() if kind in step.model_kinds)
    schema: dict[str, Any] = msgspec.json.schema(request)["$defs"][request.__name__]
    properties = {name: value for name, value in schema["properties"].items() if name not in _CHOICES}
    required = [name for name in schema["required"] if name in properties]
    return {"$schema": _DIALECT, "type": "object", "properties": properties, "required": required}


def inventory(path: Path) -> list[ModelFile]:
    """Every file below a folder, or the one file that the path names, by path. Raises `RegistryError`.

    Left out is what huggingface_hub notes of its own downloads, in `.cache/huggingface`.
    """
    try:
        if path.is_file():
            return [_read(path, path.name)]
        if not path.is_dir():
            raise RegistryError(f"{path}: there is no such folder or file.")
        names = sorted(file.relative_to(path).as_posix() for file in _walk(path, path))
        if not names:
            raise RegistryError(f"{path}: the folder holds no file.")
        return [_read(path / name, name) for name in names]
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise RegistryError(f"{path} can't be read: {error}.") from error


def damage(model: ModelView) -> list[str]:
    """What differs between a model's files now and when it was registered, in words; nothing if it is intact."""
    try:
        found = {file.path: file for file in inventory(Path(model.local_path))}
    except RegistryError as error:
        return [str(error).rstrip(".")]
    known = {file.path: file for file in model.files}
    missing = [f"{path} is missing" for path in known if path not in found]
    changed = [f"{path} has changed" for path, file in known.items() if found.get(path, file) != file]
    added = [f"{path} is new" for path in found if path not in known]
    return missing + changed + added


class Registry:
    """Changes to the models of a log. actor: this process, kept in the events' meta.

    Every method may raise `DatabaseUnavailable`; `NoSuchModel` where a model is named.
    """

    def __init__(self, log: Log, actor: str) -> None:
        self._log = log
        self._models = Models(log)
        self._actor = actor

    async def all(self) -> list[ModelView]:
        """Every model, in order."""
        return await self._models.all()

    async def find(self, wanted: str) -> ModelView:
        """The model of an id, or of a name that no other bears."""
        models = await self._models.all()
        found = [model for model in models if model.model_id == _uuid(wanted)]
        found = found or [model for model in models if model.name == wanted]
        if not found:
            raise NoSuchModel(f"There is no model {wanted}; see `dreamforge models list --all`.")
        if len(found) > 1:
            ids = ", ".join(str(model.model_id) for model in found)
            raise RegistryError(f"{len(found)} models are called {wanted}; give the id of one of them: {ids}.")
        return found[0]

    async def add(self, wanted: ModelRegistered, *, enabled: bool = True) -> tuple[ModelView, bool]:
        """Register a model; answers it, and whether it is new: one of the same kind, place and files is not.

        These three make its id, so that of two who add it at once the log lets one in; trust makes it another model.
        """
        what = (wanted.kind, wanted.local_path, files_digest(wanted.files), *(["trusted"] if wanted.trusted else []))
        model_id = derived_id(b"model", *(part.encode() for part in what))
        is_new = await self._append(model_id, 0, [wanted, ModelEnabled()] if enabled else [wanted])
        return await self._load(model_id), is_new

    async def enable(self, model_id: UUID) -> tuple[ModelView, bool]:
        """Let jobs use a model; answers it, and whether that is new."""
        return await self._change(model_id, lambda model: None if model.enabled else ModelEnabled())

    async def disable(self, model_id: UUID) -> tuple[ModelView, bool]:
        """Keep new jobs from using a model; answers it, and whether that is new."""
        return await self._change(model_id, lambda model: ModelDisabled() if model.enabled else None)

    async def verify(self, model: ModelView) -> ModelView:
        """Read a model's files again, and note whether they are what was registered."""
        problems = await asyncio.to_thread(damage, model)
        verified = ModelVerified(intact=not problems, problems=problems)
        return (await self._change(model.model_id, lambda _: verified))[0]

    async def _change(
        self, model_id: UUID, decide: Callable[[ModelView], DomainEvent | None]
    ) -> tuple[ModelView, bool]:
        """Decide on the newest state and append, until no other came between; whether there was anything to do."""
        while True:
            model = await self._load(model_id)
            body = decide(model)
            if body is None:
                await self._log.confirm_replicated()
                return model, False
            if await self._append(model_id, model.stream_version, [body]):
                return await self._load(model_id), True

    async def _append(self, model_id: UUID, expected: int, bodies: Sequence[DomainEvent]) -> bool:
        events = tuple(event(body, Meta(actor=self._actor)) for body in bodies)
        append = Append(stream=model_id, category="model", expected=expected, events=events)
        return (await self._log.commit(Batch(appends=[append]))).streams[model_id].committed

    async def _load(self, model_id: UUID) -> ModelView:
        model = await self._models.model(model_id)
        if model is None:
            raise NoSuchModel(f"There is no model {model_id}.")
        return model


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    """Every file below a folder. A link may lead to a file within the root; folders are entered by no link."""
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.resolve().is_relative_to(root):
            raise RegistryError(f"{entry} is a link that leads out of the folder; put a copy in its place (cp -rL).")
        if entry.is_file():
            yield entry
        elif entry.is_dir():
            if not entry.is_symlink() and entry != root / HUB_NOTES:
                yield from _walk(entry, root)
        else:
            raise RegistryError(f"{entry} is neither a file nor a folder.")


def _read(path: Path, name: str) -> ModelFile:
    _expect_unicode(name)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ModelFile(path=name, sha256=digest, size=file.tell())


def _expect_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RegistryError(f"{text!r} is not valid UTF-8; choose another name for it.") from None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
