"""The lineage of an image, embedded in its file. Pure; docs/images.md documents the format.

    PNG    iTXt `dreamforge`: the lineage as JSON     tEXt or iTXt `parameters`: the text of AUTOMATIC1111's web UI
    JPEG   COM: the lineage as JSON                   EXIF UserComment: that text

Other tools read the text; `read_lineage` reads the JSON. The lineage names no attempt and no time: equal images of an
item have equal files.
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
from orchestrator.copying import copy_fields
from orchestrator.events import Rendering, StepName
from orchestrator.plan import item_seed, output_size
from orchestrator.state import JobState
from orchestrator.step_kinds import ImageSize

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8"
_LINEAGE_KEYWORD, _PARAMETERS_KEYWORD = b"dreamforge", b"parameters"
_PNG_TEXT_CHUNK_TYPES = (b"tEXt", b"iTXt", b"zTXt")
_COM, _APP0, _APP1, _SOS = 0xFE, 0xE0, 0xE1, 0xDA
_EXIF_HEADER = b"Exif\0\0"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_SAMPLER_NAMES = {"ddim": "DDIM", "dpmpp_2m_karras": "DPM++ 2M Karras", "euler": "Euler", "unipc": "UniPC"}


class GenerateInputs(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs of the generate step. rendering: None for the fake engine. The prompts are None after an erasure."""

    prompt: str | None
    negative_prompt: str | None
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    scheduler: str | None
    rendering: Rendering | None


class UpscaleInputs(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs of the upscale step. parent_sha256: of the generated file. rendering: None if no model was used."""

    scale: int
    impl: str
    parent_sha256: str
    rendering: Rendering | None

    @property
    def params(self) -> dict[str, Any]:
        """What was asked of it."""
        return {"scale": self.scale, "impl": self.impl}


class LaterStepInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What another step made it of. size: of its image. parent_sha256: of the file of the step before."""

    step: str
    params: dict[str, Any]
    size: ImageSize
    parent_sha256: str
    rendering: Rendering | None


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The lineage of an image. upscale: None if it did not follow generate. later: further steps, if any."""

    format: Literal["dreamforge-lineage/1"] = "dreamforge-lineage/1"
    job_id: UUID
    item_index: int
    generate: GenerateInputs
    upscale: UpscaleInputs | None
    later: list[LaterStepInputs] | msgspec.UnsetType = msgspec.UNSET

    @property
    def derived(self) -> dict[str, UpscaleInputs | LaterStepInputs]:
        """The steps after generate."""
        upscaled = {} if self.upscale is None else {"upscale": self.upscale}
        return {**upscaled, **{one.step: one for one in self.later or ()}}

    @property
    def last(self) -> tuple[str, Rendering | None]:
        """The last step, and how that rendered it."""
        name, made = list({"generate": self.generate, **self.derived}.items())[-1]
        return name, made.rendering

    @property
    def size(self) -> ImageSize:
        """The size that the picture must have."""
        if self.later:
            return self.later[-1].size
        scale = self.upscale.scale if self.upscale else 1
        return self.generate.width * scale, self.generate.height * scale


def lineage_of(job: JobState, step: StepName, item_index: int, rendering: Rendering | None) -> Lineage:
    """The lineage of an item that a step has rendered. rendering: of this step."""
    sources = [one.artifacts[item_index] for one in takewhile(lambda one: one.name != step, job.steps)]
    generate_rendering, *renderings = [*(source.rendering for source in sources), rendering]
    upscaled = None
    later: list[LaterStepInputs] = []
    for (name, asked), source, own in zip(list(job.parameters.items())[1:], sources, renderings, strict=False):
        origin: dict[str, Any] = {"parent_sha256": source.sha256, "rendering": own}
        if name == "upscale" and not later:
            upscaled = UpscaleInputs(scale=asked.scale, impl=asked.impl, **origin)
        else:
            size = output_size(job.parameters, name)
            later.append(LaterStepInputs(step=name, params=msgspec.to_builtins(asked), size=size, **origin))
    generated = copy_fields(
        job.generate,
        GenerateInputs,
        prompt=job.private.prompt,
        negative_prompt=job.private.negative_prompt,
        seed=item_seed(job.generate.seed, job.generate.count, item_index),
        rendering=generate_rendering,
    )
    return Lineage(
        job_id=job.job_id, item_index=item_index, generate=generated, upscale=upscaled, later=later or msgspec.UNSET
    )


def parameters_text(lineage: Lineage) -> str:
    """The text in the format of AUTOMATIC1111's web UI, which ComfyUI's readers and galleries also read."""
    generated = lineage.generate
    rendering = generated.rendering
    fields = {
        "Steps": generated.steps,
        "Sampler": _SAMPLER_NAMES.get(generated.scheduler or "") or (rendering.scheduler if rendering else None),
        "CFG scale": f"{generated.guidance:g}",
        "Seed": generated.seed,
        "Size": f"{generated.width}x{generated.height}",
        "Model hash": _model_hash(rendering),
        "Model": rendering.model_id if rendering else "fake",
        "Hires upscale": lineage.upscale.scale if lineage.upscale else None,
        "Version": "Dream Forge",
    }
    lines = [generated.prompt] if generated.prompt else []
    if generated.negative_prompt:
        lines.append(f"Negative prompt: {generated.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None))
    return "\n".join(lines)


def _model_hash(rendering: Rendering | None) -> str | None:
    """The first ten digits of the weights file's SHA-256, by which galleries look up models."""
    sha256 = None if rendering is None else rendering.weights_sha256
    return None if sha256 is None else sha256[:10]


def embed_lineage(body: bytes, lineage: Lineage) -> bytes:
    """The bytes of a PNG or JPEG with this lineage, which replaces an earlier one. The pixels do not change."""
    text, data = parameters_text(lineage), msgspec.json.encode(lineage)
    if body.startswith(_PNG_SIGNATURE):
        chunks = [_itxt_chunk(_LINEAGE_KEYWORD, data), _text_chunk(text)]
        parts = [part for kind, part in _png_chunks(body) if not _is_lineage_chunk(kind, part)]
        return b"".join([_PNG_SIGNATURE, parts[0], *chunks, *parts[1:]])
    added = [(_APP1, _exif_payload(text)), (_COM, data)]
    head, rest = _jpeg_segments(body)
    kept = [
        (kind, part) for kind, part in head if kind != _COM and not (kind == _APP1 and part.startswith(_EXIF_HEADER))
    ]
    first = 1 if kept and kept[0][0] == _APP0 else 0
    return b"".join(
        [_JPEG_SIGNATURE, *(_jpeg_segment(*segment) for segment in [*kept[:first], *added, *kept[first:]]), rest]
    )


def read_lineage(body: bytes) -> Lineage | None:
    """The lineage in a PNG's or JPEG's bytes; None if there is none. Raises `InvalidSource` if it is invalid."""
    try:
        if body.startswith(_PNG_SIGNATURE):
            chunks = [
                part
                for kind, part in _png_chunks(body)
                if kind == b"iTXt" and part[8:].startswith(_LINEAGE_KEYWORD + b"\0")
            ]
            data = chunks[0][8 + len(_LINEAGE_KEYWORD) + 5 : -4] if chunks else None
        elif body.startswith(_JPEG_SIGNATURE):
            data = next(
                (part for kind, part in _jpeg_segments(body)[0] if kind == _COM and b"dreamforge" in part), None
            )
        else:
            raise InvalidSource(f"the file is neither PNG nor JPEG: it begins with {body[:8]!r}")
        return None if data is None else msgspec.json.decode(data, type=Lineage)
    except (msgspec.MsgspecError, UnicodeDecodeError, struct.error, IndexError) as error:
        raise InvalidSource(f"the lineage within the file is broken: {error}") from error


def remove_private_text(body: bytes) -> bytes:
    """A file's bytes without prompts; the rest of the lineage stays. A file without prompts is returned unchanged."""
    lineage = read_lineage(body)
    if lineage is None or (lineage.generate.prompt is None and lineage.generate.negative_prompt is None):
        return body
    anonymous = msgspec.structs.replace(lineage.generate, prompt=None, negative_prompt=None)
    return embed_lineage(body, msgspec.structs.replace(lineage, generate=anonymous))


# PNG (ISO/IEC 15948): length, type, data, CRC-32 of type and data -------------------------------------------------


def _png_chunks(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every chunk's type, and all bytes of the chunk."""
    offset = len(_PNG_SIGNATURE)
    while offset < len(body):
        length, kind = struct.unpack_from(">I4s", body, offset)
        end = offset + 12 + length
        if end > len(body):
            raise InvalidSource("the PNG ends within a chunk")
        yield kind, body[offset:end]
        offset = end


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _itxt_chunk(key: bytes, text: bytes) -> bytes:
    return _png_chunk(b"iTXt", key + b"\0\0\0\0\0" + text)


def _text_chunk(text: str) -> bytes:
    """A tEXt chunk (Latin-1), which every reader supports; an iTXt chunk (UTF-8) for other characters."""
    try:
        return _png_chunk(b"tEXt", _PARAMETERS_KEYWORD + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _itxt_chunk(_PARAMETERS_KEYWORD, text.encode())


def _is_lineage_chunk(kind: bytes, part: bytes) -> bool:
    return kind in _PNG_TEXT_CHUNK_TYPES and part[8:].split(b"\0", 1)[0] in {_LINEAGE_KEYWORD, _PARAMETERS_KEYWORD}


# JPEG (ITU-T T.81, B.1.1): markers, each with a length that includes its own two bytes ----------------------------


def _jpeg_segments(body: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The segments before the image data, and the remaining bytes."""
    segments: list[tuple[int, bytes]] = []
    offset = len(_JPEG_SIGNATURE)
    while True:
        marker, kind, length = struct.unpack_from(">BBH", body, offset)
        if marker != 0xFF or length < 2 or offset + 2 + length > len(body):
            raise InvalidSource("the JPEG has an invalid segment")
        if kind == _SOS:
            return segments, body[offset:]
        segments.append((kind, body[offset + 4 : offset + 2 + length]))
        offset += 2 + length


def _jpeg_segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def _exif_payload(text: str) -> bytes:
    """EXIF (CIPA DC-008) with a UserComment. Its code UNICODE means UTF-16; readers expect big-endian."""
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()
