"""Where a picture came from, within its file. Pure; the form is documented in docs/images.md.

    PNG    iTXt `dreamforge`: the lineage as JSON     tEXt or iTXt `parameters`: the text of AUTOMATIC1111's web UI
    JPEG   COM: the lineage as JSON                   EXIF UserComment: that text

Other tools read the text; `read` reads the JSON. Nothing of it tells an attempt or a time: equal pictures of an item
have equal files.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, Literal
from uuid import UUID

import msgspec
from PIL import Image

from artifacts.errors import InvalidSource
from orchestrator.events.steps import Rendering, StepName
from orchestrator.parameters import SamplingParams
from orchestrator.plan import item_seed, output_size
from orchestrator.state import JobState
from orchestrator.step_kinds import Size

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_KEY, _TEXT_KEY = b"dreamforge", b"parameters"
_TEXTS = (b"tEXt", b"iTXt", b"zTXt")
_COM, _APP0, _APP1, _SOS = 0xFE, 0xE0, 0xE1, 0xDA
_EXIF = b"Exif\0\0"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_SAMPLERS = {"ddim": "DDIM", "dpmpp_2m_karras": "DPM++ 2M Karras", "euler": "Euler", "unipc": "UniPC"}


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """What generate made it of. rendering: None for the fake engine; the prompts are null once they were erased."""

    prompt: str | None
    negative_prompt: str | None
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    scheduler: str | None
    rendering: Rendering | None


class Upscaled(msgspec.Struct, frozen=True, kw_only=True):
    """What upscale made it of. parent_sha256: of the generated file. rendering: None where it was resampled."""

    scale: int
    impl: str
    parent_sha256: str
    rendering: Rendering | None

    @property
    def params(self) -> dict[str, Any]:
        """What was asked of it."""
        return {"scale": self.scale, "impl": self.impl}


class Derived(msgspec.Struct, frozen=True, kw_only=True):
    """What another step made it of. size: of its image. parent_sha256: of the file of the step before."""

    step: str
    params: dict[str, Any]
    size: Size
    parent_sha256: str
    rendering: Rendering | None


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """A picture's whole way. upscale: None where it did not follow generate. later: further steps, if any."""

    format: Literal["dreamforge-lineage/1"] = "dreamforge-lineage/1"
    job_id: UUID
    item_index: int
    generate: Generated
    upscale: Upscaled | None
    later: list[Derived] | msgspec.UnsetType = msgspec.UNSET

    @property
    def derived(self) -> dict[str, Upscaled | Derived]:
        """The steps after generate."""
        upscaled = {} if self.upscale is None else {"upscale": self.upscale}
        return {**upscaled, **{one.step: one for one in self.later or ()}}

    @property
    def last(self) -> tuple[str, Rendering | None]:
        """The last step, and how that rendered it."""
        name, made = list({"generate": self.generate, **self.derived}.items())[-1]
        return name, made.rendering

    @property
    def size(self) -> Size:
        """The size that the picture must have."""
        if self.later:
            return self.later[-1].size
        scale = self.upscale.scale if self.upscale else 1
        return self.generate.width * scale, self.generate.height * scale


def lineage(job: JobState, step: StepName, item_index: int, rendering: Rendering | None) -> Lineage:
    """The lineage of an item that a step has just made."""
    sources = [one.artifacts[item_index] for one in takewhile(lambda one: one.name != step, job.steps)]
    made, *renderings = [*(source.rendering for source in sources), rendering]
    upscaled = None
    later: list[Derived] = []
    for (name, asked), source, own in zip(list(job.parameters.items())[1:], sources, renderings, strict=False):
        told: dict[str, Any] = {"parent_sha256": source.sha256, "rendering": own}
        if name == "upscale" and not later:
            upscaled = Upscaled(scale=asked.scale, impl=asked.impl, **told)
        else:
            size = output_size(job.parameters, name)
            later.append(Derived(step=name, params=msgspec.to_builtins(asked), size=size, **told))
    generated = Generated(
        prompt=job.private.prompt,
        negative_prompt=job.private.negative_prompt,
        seed=item_seed(job.generate.seed, job.generate.count, item_index),
        **{name: getattr(job.generate, name) for name in SamplingParams.__struct_fields__},
        rendering=made,
    )
    return Lineage(
        job_id=job.job_id, item_index=item_index, generate=generated, upscale=upscaled, later=later or msgspec.UNSET
    )


def parameters(found: Lineage) -> str:
    """The text that AUTOMATIC1111's web UI writes, and that it, ComfyUI's readers and galleries read back."""
    made = found.generate
    fields = {
        "Steps": made.steps,
        "Sampler": _SAMPLERS.get(made.scheduler or "") or (made.rendering.scheduler if made.rendering else None),
        "CFG scale": f"{made.guidance:g}",
        "Seed": made.seed,
        "Size": f"{made.width}x{made.height}",
        "Model hash": _model_hash(made.rendering),
        "Model": made.rendering.model_id if made.rendering else "fake",
        "Hires upscale": found.upscale.scale if found.upscale else None,
        "Version": "Dream Forge",
    }
    lines = [made.prompt] if made.prompt else []
    if made.negative_prompt:
        lines.append(f"Negative prompt: {made.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None))
    return "\n".join(lines)


def _model_hash(made: Rendering | None) -> str | None:
    """The first ten digits of the SHA-256 of the one file of weights: galleries look models up by it."""
    return made.weights_sha256[:10] if made is not None and made.weights_sha256 is not None else None


def embed(body: bytes, found: Lineage) -> bytes:
    """A PNG's or JPEG's bytes with a lineage, instead of one that it may have; the picture is not touched."""
    text, data = parameters(found), msgspec.json.encode(found)
    if body.startswith(_PNG):
        chunks = [_itxt(_KEY, data), _text_chunk(text)]
        parts = [part for kind, part in _chunks(body) if not _is_ours(kind, part)]
        return b"".join([_PNG, parts[0], *chunks, *parts[1:]])
    segments = [(_APP1, _exif(text)), (_COM, data)]
    head, rest = _segments(body)
    kept = [(kind, part) for kind, part in head if kind != _COM and not (kind == _APP1 and part.startswith(_EXIF))]
    first = 1 if kept and kept[0][0] == _APP0 else 0
    return b"".join([_JPEG, *(_segment(*one) for one in [*kept[:first], *segments, *kept[first:]]), rest])


def read(body: bytes) -> Lineage | None:
    """The lineage within a PNG's or JPEG's bytes; None if there is none. Raises `InvalidSource` if it is broken."""
    try:
        if body.startswith(_PNG):
            found = [part for kind, part in _chunks(body) if kind == b"iTXt" and part[8:].startswith(_KEY + b"\0")]
            data = found[0][8 + len(_KEY) + 5 : -4] if found else None
        elif body.startswith(_JPEG):
            data = next((part for kind, part in _segments(body)[0] if kind == _COM and b"dreamforge" in part), None)
        else:
            raise InvalidSource(f"the file is neither PNG nor JPEG: it begins with {body[:8]!r}")
        return None if data is None else msgspec.json.decode(data, type=Lineage)
    except (msgspec.MsgspecError, UnicodeDecodeError, struct.error, IndexError) as error:
        raise InvalidSource(f"the lineage within the file is broken: {error}") from error


def stripped(body: bytes) -> bytes:
    """A file's bytes without personal text; the rest of its lineage stays. One without any stays as it is."""
    found = read(body)
    if found is None or (found.generate.prompt is None and found.generate.negative_prompt is None):
        return body
    anonymous = msgspec.structs.replace(found.generate, prompt=None, negative_prompt=None)
    return embed(body, msgspec.structs.replace(found, generate=anonymous))


# PNG (ISO/IEC 15948): length, kind, data, CRC-32 of the latter two ------------------------------------------------


def _chunks(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every chunk's kind, and its whole bytes."""
    at = len(_PNG)
    while at < len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        end = at + 12 + length
        if end > len(body):
            raise InvalidSource("the PNG ends within a chunk")
        yield kind, body[at:end]
        at = end


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _itxt(key: bytes, text: bytes) -> bytes:
    return _chunk(b"iTXt", key + b"\0\0\0\0\0" + text)


def _text_chunk(text: str) -> bytes:
    """As Latin-1, which every reader reads; else as UTF-8."""
    try:
        return _chunk(b"tEXt", _TEXT_KEY + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _itxt(_TEXT_KEY, text.encode())


def _is_ours(kind: bytes, part: bytes) -> bool:
    return kind in _TEXTS and part[8:].split(b"\0", 1)[0] in {_KEY, _TEXT_KEY}


# JPEG (ITU-T T.81, B.1.1): markers, each with a length that counts itself -----------------------------------------


def _segments(body: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The segments before the picture's data, and the rest."""
    found: list[tuple[int, bytes]] = []
    at = len(_JPEG)
    while True:
        mark, kind, length = struct.unpack_from(">BBH", body, at)
        if mark != 0xFF or length < 2 or at + 2 + length > len(body):
            raise InvalidSource("the JPEG has no sound segments")
        if kind == _SOS:
            return found, body[at:]
        found.append((kind, body[at + 4 : at + 2 + length]))
        at += 2 + length


def _segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def _exif(text: str) -> bytes:
    """EXIF (CIPA DC-008) with a UserComment; its code UNICODE is UTF-16, in the byte order that readers expect."""
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()
