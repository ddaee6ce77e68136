"""Whether a model's files are what its kind needs, as far as that shows without running any of it."""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from orchestrator.events.models import ModelKind

_POINTER = b"version https://git-lfs"
_LONGEST_POINTER = 1024
_LONGEST_HEADER = 100_000_000
"""As safetensors has it."""

_CHECKPOINT = "model.diffusion_model."
"""What the names of a checkpoint's central tensors begin with, for Stable Diffusion 1, 2 and XL alike."""

_LEFT_OUT = {"safety_checker", "feature_extractor", "image_encoder"}
"""Components that a generator is opened without."""

_WEIGHTLESS = ("Tokenizer", "TokenizerFast", "Processor", "Scheduler", "Extractor")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")

_LOADED = {
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
"""The weights that each library looks for where no variant is asked for; it opens the first that is there."""


class Unfit(Exception):
    """What is wrong with a model's files."""


class _Tensor(msgspec.Struct, frozen=True):
    """A tensor as safetensors' header tells of it. data_offsets: its begin and end, after the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def expect_fit(root: Path, kind: ModelKind, paths: Iterable[str], *, trust: bool) -> None:
    """Raise `Unfit` unless the files can be a model of a kind. paths: below the root; the root may be the one file."""
    files = {path: root if root.is_file() else root / path for path in paths}
    tensors = {}
    for name, file in files.items():
        _expect_no_pointer(name, file)
        if file.suffix.lower() == ".safetensors":
            tensors[name] = _tensors(name, file)
    is_checkpoint = any(tensor.startswith(_CHECKPOINT) for names in tensors.values() for tensor in names)
    if kind == "gan-upscaler":
        known = (".safetensors", *_PICKLES) if root.is_file() else (".safetensors", ".pth")
        networks = [name for name in files if name.lower().endswith(known)]
        if len(networks) != 1:
            raise Unfit(f"a GAN is one .safetensors or .pth file; found are {len(networks)}")
        if is_checkpoint:
            raise Unfit("it is a checkpoint of Stable Diffusion, and no GAN: add it with --kind generator")
        _expect_pickle_of_torch(networks[0], files[networks[0]])
    elif not root.is_file():
        _Pipeline(files, trust=trust).expect_fit(kind)
    elif kind == "diffusion-upscaler":
        raise Unfit("a diffusion upscaler is a folder in diffusers' layout")
    elif not is_checkpoint:
        raise Unfit(
            f"it is no whole checkpoint, since none of its tensors' names begins with {_CHECKPOINT}: a LoRA, perhaps, "
            "or a part of a pipeline"
        )


def _expect_no_pointer(name: str, file: Path) -> None:
    if file.stat().st_size <= _LONGEST_POINTER and file.read_bytes().startswith(_POINTER):
        raise Unfit(f"{name} is a pointer of Git LFS, and not the file that it stands for: run `git lfs pull`")


def _expect_pickle_of_torch(name: str, file: Path) -> None:
    """What torch writes is a ZIP archive, or an older pickle, of which nothing shows unless it is run."""
    if file.suffix.lower() not in _PICKLES:
        return
    with file.open("rb") as opened:
        begin = opened.read(2)
    if not begin.startswith((b"PK", b"\x80")):
        raise Unfit(f"{name} is no file of torch's: it begins neither as a ZIP archive nor as a pickle")
    if begin == b"PK" and not zipfile.is_zipfile(file):
        raise Unfit(f"{name} is cut off: the end of its archive is missing")


def _tensors(name: str, file: Path) -> Mapping[str, _Tensor]:
    """What a file in safetensors holds: the length of its header, the header as JSON, and the tensors without a gap."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            raise Unfit(f"{name} is no safetensors file, or is cut off: it has no whole header")
        header = opened.read(length)
    try:
        found = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        found.pop("__metadata__", None)
        tensors = {tensor: msgspec.json.decode(raw, type=_Tensor) for tensor, raw in found.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unfit(f"{name} is no safetensors file: its header can't be read ({error})") from error
    if not tensors:
        raise Unfit(f"{name} holds no tensor")
    end = 0
    for start, stop in sorted(tensor.data_offsets for tensor in tensors.values()):
        if start != end or stop < start:
            raise Unfit(f"{name} is no sound safetensors file: its tensors overlap or leave gaps")
        end = stop
    if size != 8 + length + end:
        raise Unfit(f"{name} has {size:,} bytes, and by its header {8 + length + end:,}: it is cut off or damaged")
    return tensors


class _Pipeline:
    """A folder in diffusers' layout, by its files' paths."""

    def __init__(self, files: Mapping[str, Path], *, trust: bool) -> None:
        self._files = files
        self._weights = (".safetensors", *_PICKLES) if trust else (".safetensors",)

    def expect_fit(self, kind: ModelKind) -> None:
        """Hold the index against the files, and its classes against what diffusers has, where that is installed."""
        if "model_index.json" not in self._files:
            raise Unfit("it holds no model_index.json, and is no pipeline in diffusers' layout")
        index = self._json("model_index.json")
        name = index.get("_class_name")
        if not isinstance(name, str | list):
            raise Unfit("model_index.json names no _class_name")
        _expect_class("model_index.json", name)
        if kind == "diffusion-upscaler" and "low_res_scheduler" not in index:
            raise Unfit(f"{name} has no low_res_scheduler: it enlarges no image by 4")
        if kind == "generator" and "low_res_scheduler" in index:
            raise Unfit(f"{name} enlarges images: add it with --kind diffusion-upscaler")
        for component, value in index.items():
            is_left_out = kind == "generator" and component in _LEFT_OUT
            if not component.startswith("_") and not is_left_out:
                self._expect_component(component, value)

    def _expect_component(self, component: str, value: Any) -> None:
        match value:
            case [str(library), str(kind)]:
                pass
            case _:  # a setting, or a component that is left empty
                return
        if library == "diffusers":
            _expect_class(component, kind)
        own = [path for path in self._files if PurePosixPath(path).parts[0] == component]
        if not own:
            raise Unfit(f"model_index.json names {component}, and there is no folder of it")
        needed = "scheduler_config.json" if kind.endswith("Scheduler") else "config.json"
        if library == "diffusers" and f"{component}/{needed}" not in self._files:
            raise Unfit(f"{component} holds no {needed}")
        if f"{component}/{needed}" in self._files:
            config = self._json(f"{component}/{needed}")
            # A program of the model's own may open any file, and a configuration may name one.
            may_open_others = f"{component}/{library}.py" in self._files or "transformers_weights" in config
            if not kind.endswith(_WEIGHTLESS) and not may_open_others:
                self._expect_weights(component, _LOADED.get(library, tuple(chain(*_LOADED.values()))))

    def _expect_weights(self, component: str, names: Sequence[str]) -> None:
        """The first of these names that is there must be whole; an index after it may be left over from a fetch."""
        opened = next((path for name in names if (path := f"{component}/{name}") in self._files), None)
        if opened is None:
            wanted = [name for name in names if name.endswith(self._weights)]
            problem = f"{component} holds no {' or '.join(wanted)}"
            variants = [f"{component}/{name.replace('.', '.*.')}" for name in wanted]
            if variant := next((path for path in self._files if any(map(PurePosixPath(path).match, variants))), None):
                problem += f"; {variant} is a variant, and is not opened: fetch the other file, or rename this one"
            raise Unfit(problem)
        for path in self._parts(opened):
            if path not in self._files:
                raise Unfit(f"{path} is missing, which {opened} names")
            _expect_pickle_of_torch(path, self._files[path])

    def _parts(self, weights: str) -> list[str]:
        """The files that an index of weights in several files names; otherwise the one file."""
        if not weights.endswith(".index.json"):
            return [weights]
        parts = self._json(weights).get("weight_map")
        if not isinstance(parts, dict):
            raise Unfit(f"{weights} has no weight_map")
        return sorted({(PurePosixPath(weights).parent / str(part)).as_posix() for part in parts.values()})

    def _json(self, path: str) -> dict[str, Any]:
        try:
            return msgspec.json.decode(self._files[path].read_bytes(), type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unfit(f"{path} is no JSON object: {error}") from error


def _expect_class(where: str, name: str | list[Any]) -> None:
    """A class is one of diffusers' own; of a list, which names a program of the model's, nothing is known."""
    known = _classes()
    if isinstance(name, str) and known is not None and name not in known:
        raise Unfit(f"{where} wants {name}, which the installed diffusers does not have")


@lru_cache(maxsize=1)
def _classes() -> frozenset[str] | None:
    """The names that diffusers has; None where it is not installed, or can't be imported."""
    try:
        import diffusers  # noqa: PLC0415 - it comes with an extra
    except (ImportError, RuntimeError, OSError):
        return None
    return frozenset(dir(diffusers))
