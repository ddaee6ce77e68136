"""Checks that a model's files fit its kind, without running any of them."""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from orchestrator.events import ModelKind

_LFS_POINTER_PREFIX = b"version https://git-lfs"
_MAX_LFS_POINTER_BYTES = 1024
_MAX_SAFETENSORS_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

_UNET_TENSOR_PREFIX = "model.diffusion_model."
"""Prefix of the tensor names of the UNet in a Stable Diffusion 1, 2 or XL checkpoint."""

_IGNORED_COMPONENTS = {"safety_checker", "feature_extractor", "image_encoder"}
"""Components that a generator does not load."""

_CLASS_SUFFIXES_WITHOUT_WEIGHTS = ("Tokenizer", "TokenizerFast", "Processor", "Scheduler", "Extractor")
_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")

_WEIGHTS_FILE_NAMES = {
    "diffusers": (
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
    ),
    "transformers": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}
"""The names of weights files by library. Without a variant, the library opens the first one that exists."""


class BadModelFiles(Exception):
    """A model's files do not fit its kind; the message says why."""


class _TensorHeader(msgspec.Struct, frozen=True):
    """A tensor's entry in the safetensors header. data_offsets: its start and end, relative to the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def check_files(root: Path, kind: ModelKind, paths: Iterable[str], *, trust: bool) -> None:
    """Raise `BadModelFiles` unless the files can be a model of this kind.

    paths: relative to the root. The root may be a folder or the model's only file.
    """
    files = {path: root if root.is_file() else root / path for path in paths}
    tensors = {}
    for name, file in files.items():
        _reject_lfs_pointer(name, file)
        if file.suffix.lower() == ".safetensors":
            tensors[name] = _read_tensors(name, file)
    is_checkpoint = any(tensor.startswith(_UNET_TENSOR_PREFIX) for names in tensors.values() for tensor in names)
    if kind == "gan-upscaler":
        known = (".safetensors", *_PICKLE_SUFFIXES) if root.is_file() else (".safetensors", ".pth")
        networks = [name for name in files if name.lower().endswith(known)]
        if len(networks) != 1:
            raise BadModelFiles(f"a GAN is one .safetensors or .pth file; found are {len(networks)}")
        if is_checkpoint:
            raise BadModelFiles("it is a checkpoint of Stable Diffusion, and no GAN: add it with --kind generator")
        _check_torch_file(networks[0], files[networks[0]])
    elif not root.is_file():
        _PipelineFolder(files, trust=trust).check(kind)
    elif kind == "diffusion-upscaler":
        raise BadModelFiles("a diffusion upscaler is a folder in diffusers' layout")
    elif not is_checkpoint:
        raise BadModelFiles(
            f"it is no complete checkpoint, since none of its tensors' names begins with {_UNET_TENSOR_PREFIX}: it may "
            "be a LoRA or a part of a pipeline"
        )


def _reject_lfs_pointer(file_name: str, path: Path) -> None:
    if path.stat().st_size <= _MAX_LFS_POINTER_BYTES and path.read_bytes().startswith(_LFS_POINTER_PREFIX):
        raise BadModelFiles(
            f"{file_name} is a pointer of Git LFS, and not the file that it stands for: run `git lfs pull`"
        )


def _check_torch_file(file_name: str, path: Path) -> None:
    """Check the start and end of a file of torch: a ZIP archive, or an older pickle, whose end cannot be checked."""
    if path.suffix.lower() not in _PICKLE_SUFFIXES:
        return
    with path.open("rb") as stream:
        begin = stream.read(2)
    if not begin.startswith((b"PK", b"\x80")):
        raise BadModelFiles(f"{file_name} is no file of torch's: it begins neither as a ZIP archive nor as a pickle")
    if begin == b"PK" and not zipfile.is_zipfile(path):
        raise BadModelFiles(f"{file_name} is cut off: the end of its archive is missing")


def _read_tensors(file_name: str, path: Path) -> Mapping[str, _TensorHeader]:
    """The tensors of a safetensors file: eight bytes of header length, a JSON header, and tensors without gaps."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(_MAX_SAFETENSORS_HEADER_BYTES, size - 8):
            raise BadModelFiles(f"{file_name} is no safetensors file, or is cut off: it has no whole header")
        header = stream.read(length)
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {tensor: msgspec.json.decode(raw, type=_TensorHeader) for tensor, raw in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadModelFiles(f"{file_name} is no safetensors file: its header can't be read ({error})") from error
    if not tensors:
        raise BadModelFiles(f"{file_name} holds no tensor")
    end = 0
    for start, stop in sorted(tensor.data_offsets for tensor in tensors.values()):
        if start != end or stop < start:
            raise BadModelFiles(f"{file_name} is no valid safetensors file: its tensors overlap or leave gaps")
        end = stop
    if size != 8 + length + end:
        raise BadModelFiles(
            f"{file_name} has {size:,} bytes, and by its header {8 + length + end:,}: it is cut off or damaged"
        )
    return tensors


class _PipelineFolder:
    """A folder in diffusers' layout. files: by path relative to the folder."""

    def __init__(self, files: Mapping[str, Path], *, trust: bool) -> None:
        self._files = files
        self._weights_suffixes = (".safetensors", *_PICKLE_SUFFIXES) if trust else (".safetensors",)

    def check(self, kind: ModelKind) -> None:
        """Check that the index matches the files and, if diffusers is installed, that it has the index's classes."""
        if "model_index.json" not in self._files:
            raise BadModelFiles("it holds no model_index.json, and is no pipeline in diffusers' layout")
        index = self._read_json_object("model_index.json")
        name = index.get("_class_name")
        if not isinstance(name, str | list):
            raise BadModelFiles("model_index.json names no _class_name")
        _check_diffusers_class("model_index.json", name)
        if kind == "diffusion-upscaler" and "low_res_scheduler" not in index:
            raise BadModelFiles(f"{name} has no low_res_scheduler: it enlarges no image by 4")
        if kind == "generator" and "low_res_scheduler" in index:
            raise BadModelFiles(f"{name} enlarges images: add it with --kind diffusion-upscaler")
        for component, value in index.items():
            is_ignored = kind == "generator" and component in _IGNORED_COMPONENTS
            if not component.startswith("_") and not is_ignored:
                self._check_component(component, value)

    def _check_component(self, component: str, value: Any) -> None:
        match value:
            case [str(library), str(kind)]:
                pass
            case _:  # a setting, or an empty component
                return
        if library == "diffusers":
            _check_diffusers_class(component, kind)
        own = [path for path in self._files if PurePosixPath(path).parts[0] == component]
        if not own:
            raise BadModelFiles(f"model_index.json names {component}, and there is no folder of it")
        needed = "scheduler_config.json" if kind.endswith("Scheduler") else "config.json"
        if library == "diffusers" and f"{component}/{needed}" not in self._files:
            raise BadModelFiles(f"{component} holds no {needed}")
        if f"{component}/{needed}" in self._files:
            config = self._read_json_object(f"{component}/{needed}")
            # The model's own code may open any file, and a configuration may name one.
            may_open_others = f"{component}/{library}.py" in self._files or "transformers_weights" in config
            if not kind.endswith(_CLASS_SUFFIXES_WITHOUT_WEIGHTS) and not may_open_others:
                self._check_weights(
                    component, _WEIGHTS_FILE_NAMES.get(library, tuple(chain(*_WEIGHTS_FILE_NAMES.values())))
                )

    def _check_weights(self, component: str, names: Sequence[str]) -> None:
        """Check the first of these files that exists. Later ones do not matter: an index may be left from a fetch."""
        file_name = next((path for name in names if (path := f"{component}/{name}") in self._files), None)
        if file_name is None:
            wanted = [name for name in names if name.endswith(self._weights_suffixes)]
            problem = f"{component} holds no {' or '.join(wanted)}"
            variants = [f"{component}/{name.replace('.', '.*.')}" for name in wanted]
            if variant := next((path for path in self._files if any(map(PurePosixPath(path).match, variants))), None):
                problem += f"; {variant} is a variant, and is not opened: fetch the other file, or rename this one"
            raise BadModelFiles(problem)
        for path in self._weights_part_paths(file_name):
            if path not in self._files:
                raise BadModelFiles(f"{path} is missing, which {file_name} names")
            _check_torch_file(path, self._files[path])

    def _weights_part_paths(self, weights_path: str) -> list[str]:
        """The files that a weights index names; for weights in one file, that file."""
        if not weights_path.endswith(".index.json"):
            return [weights_path]
        parts = self._read_json_object(weights_path).get("weight_map")
        if not isinstance(parts, dict):
            raise BadModelFiles(f"{weights_path} has no weight_map")
        return sorted({(PurePosixPath(weights_path).parent / str(part)).as_posix() for part in parts.values()})

    def _read_json_object(self, path: str) -> dict[str, Any]:
        try:
            return msgspec.json.decode(self._files[path].read_bytes(), type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadModelFiles(f"{path} is no JSON object: {error}") from error


def _check_diffusers_class(mentioned_in: str, class_name: str | list[Any]) -> None:
    """Check that diffusers has a class. A list names the model's own code, which cannot be checked."""
    known = _diffusers_class_names()
    if isinstance(class_name, str) and known is not None and class_name not in known:
        raise BadModelFiles(f"{mentioned_in} wants {class_name}, which the installed diffusers does not have")


@lru_cache(maxsize=1)
def _diffusers_class_names() -> frozenset[str] | None:
    """The public names of diffusers; None if it cannot be imported."""
    try:
        import diffusers  # noqa: PLC0415 - it comes with an extra
    except (ImportError, RuntimeError, OSError):
        return None
    return frozenset(dir(diffusers))
