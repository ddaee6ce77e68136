"""The body of POST /v1/jobs, checked and normalised. Pure.

Three forms ask for the same kinds of job: the legacy form (generate alone), `chain`, and `pipeline`.
"""

import hmac
import json
import re
from collections import Counter
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeVar, get_args
from uuid import UUID

import msgspec
from msgspec import Meta
from msgspec.structs import asdict

from api.errors import ApiError, invalid_field_error
from orchestrator.copying import copied
from orchestrator.events import Idempotency, JobCreated, PlannedStep, Private
from orchestrator.parameters import (
    PARAMETERS,
    Engine,
    Generate,
    GenerateParams,
    ImageFormat,
    Impl,
    Scale,
    Scheduler,
    Upscale,
    UpscaleParams,
)
from orchestrator.plan import output_size

Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
T = TypeVar("T")


class Chain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What follows generate."""

    upscale: Upscale | None = None


class JobRequest(Generate, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The legacy form and `chain`."""

    chain: Chain | None = None
    metadata: Metadata = msgspec.field(default_factory=dict)


class PipelineUpscale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The second element of `pipeline`."""

    type: Literal["upscale"]
    scale: Scale = 2
    mode: Literal["image"] = "image"


PIPELINE = (Generate, PipelineUpscale)
"""The elements of `pipeline`."""
RULES = {
    Upscale.__name__: {
        "not": {
            "required": ["impl", "strict_scale"],
            "properties": {
                "impl": {"const": "diffusion"},
                "strict_scale": {"const": True},
                "scale": {"enum": [2, None]},
            },
        }
    }
}
"""What a type's schema can't tell of its fields, as further keywords of JSON Schema."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A request in two readings: `request` with its defaults filled, `given` as it came, but for its form.

    is_pipeline: the form in which it came.
    """

    request: JobRequest
    given: dict[str, Any]
    is_pipeline: bool = False

    def field_path(self, field: str) -> str:
        """Where a field of `request` stands in the form that the client used."""
        if not self.is_pipeline:
            return field
        return "pipeline[1].scale" if field == "chain.upscale.scale" else f"pipeline[0].{field}"

    def parameters(self) -> dict[str, Any]:
        """What is asked of the model that generates, defaults filled; what is left to the model is left out."""
        asked = msgspec.to_builtins(self.request)
        return {name: asked[name] for name in PARAMETERS if asked[name] is not None}

    def idempotency(self, key: bytes) -> Idempotency:
        """What is kept of an Idempotency-Key, and of the request that came with it.

        The request is kept as an HMAC under the key, which is nowhere kept itself: it would else tell a short prompt
        after its erasure. Of the request as given, so that a later release's defaults make no false conflict.
        """
        canonical = msgspec.json.encode(self.given, order="sorted")
        return Idempotency(key_sha256=sha256(key).hexdigest(), request_hmac=hmac.digest(key, canonical, "sha256").hex())


_BESIDE_PIPELINE = {"pipeline", "metadata"}
# msgspec names the place in the message only: "Expected `int` <= 100 - at `$.count`", "… - at `key` in `$.metadata`".
_PLACE = re.compile(r"^(?P<reason>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)
_QUOTED = re.compile(r"`([^`]*)`")
_JSON_NAMES = {"int": "integer", "str": "string", "float": "number", "bool": "boolean"}
_CHOICES = {
    "type": ("generate",),
    "scheduler": get_args(Scheduler),
    "format": get_args(ImageFormat),
    "engine": get_args(Engine),
    "impl": get_args(Impl),
    "scale": get_args(Scale),
}
_NAMED = re.compile(r"^Object (?:contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL)


def parse(body: bytes) -> Submission:
    """Read a request of any of the three forms. Raises `ApiError` naming the field that is wrong."""
    if not body.strip():
        raise invalid_field_error("body", "empty; send a JSON object")
    try:
        given = _clean(msgspec.json.decode(body), ())
        _reject_doubles(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_field_error("body", _not_json(body, error)) from None
    except RecursionError:
        raise invalid_field_error("body", "nested too deeply") from None
    if not isinstance(given, dict):
        raise invalid_field_error("body", "must be a JSON object")
    return _from_pipeline(given) if given.get("pipeline") is not None else _from_chain(given)


def events(
    submission: Submission,
    *,
    seed: int,
    step_ids: tuple[UUID, UUID],
    max_pixels: int,
    idempotency: Idempotency | None = None,
) -> tuple[JobCreated, Private]:
    """The first event of the job that a request asks for, and its private part.

    seed: used where the request names none. Raises `ApiError` for what would come out too large.
    """
    request = submission.request
    upscale = None if request.chain is None or request.chain.upscale is None else request.chain.upscale
    if upscale is not None and upscale.strict_scale and upscale.impl == "diffusion" and upscale.scale == 2:
        raise invalid_field_error(
            "chain.upscale.strict_scale", "the diffusion upscaler is made for scale 4; scale 2 is derived"
        )
    generate = copied(request, GenerateParams, seed=seed if request.seed is None else request.seed)
    params = None if upscale is None else copied(upscale, UpscaleParams)
    names = ["generate"] if params is None else ["generate", "upscale"]
    steps = [PlannedStep(step_id=step_id, name=name) for step_id, name in zip(step_ids, names, strict=False)]
    created = JobCreated(type="generate", steps=steps, generate=generate, upscale=params, idempotency=idempotency)
    width, height = output_size(created.parameters(), names[-1])
    if width * height > max_pixels:
        field = submission.field_path("chain.upscale.scale" if params else "width")
        raise invalid_field_error(
            field, f"the output of {width}x{height} is over {max_pixels} pixels", max_pixels=max_pixels
        )
    private = Private(prompt=request.prompt, negative_prompt=request.negative_prompt, metadata=request.metadata)
    return created, private


def _not_json(body: bytes, error: Exception) -> str:
    if "out of range" in str(error):
        return "holds a number that is out of range"
    # msgspec takes the lone half of a surrogate pair for a text that was cut off.
    hint = " (perhaps a lone surrogate, an escape like \\ud800)" if rb"\ud" in body.lower() else ""
    return f"not valid JSON: {error}{hint}"


class _Doubled(dict[str, Any]):
    """An object that has a key twice."""

    key: str


def _reject_doubles(body: bytes) -> None:
    """Refuse an object that has a key twice: one value would be taken here, and perhaps the other by another reader."""
    doubled = []

    def gathered(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        doubled.append(_Doubled(found))
        doubled[-1].key = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return doubled[-1]

    # msgspec, which has found the body sound, keeps the last of them without a word.
    whole = json.loads(body, object_pairs_hook=gathered, parse_int=str, parse_float=str)
    if doubled:
        field_path = _doubled_at(whole, ()) or (doubled[0].key,)
        raise invalid_field_error("".join(field_path).lstrip("."), "stands there twice")


def _doubled_at(value: Any, field_path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Where the first key is that an object has twice, in pieces. None within a value that a doubled key hides."""
    if isinstance(value, _Doubled):
        return (*field_path, ".", value.key)
    match value:
        case dict():
            inner = (_doubled_at(one, (*field_path, ".", name)) for name, one in value.items())
        case list():
            inner = (_doubled_at(one, (*field_path, f"[{n}]")) for n, one in enumerate(value))
        case _:
            return None
    return next((found for found in inner if found is not None), None)


def _clean(value: Any, field_path: tuple[str, ...]) -> Any:
    """Whole numbers written as floats become integers; text that PostgreSQL can't keep is refused.

    place: of the value, in pieces: joined at every level, those of a deep body would fill the memory.
    """
    match value:
        case float() if value.is_integer():
            return int(value)
        case str() if "\0" in value:
            raise invalid_field_error("".join(field_path).lstrip(".") or "body", "contains U+0000")
        case dict():
            for key in value:
                _clean(key, field_path)
            return {key: _clean(one, (*field_path, ".", key)) for key, one in value.items()}
        case list():
            return [_clean(one, (*field_path, f"[{n}]")) for n, one in enumerate(value)]
        case _:
            return value


def _present(given: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A known field that is null is as good as absent."""
    return {name: value for name, value in given.items() if value is not None or name not in kind.__struct_fields__}


def _from_chain(given: dict[str, Any]) -> Submission:
    given = _present({name: value for name, value in given.items() if name != "pipeline"}, JobRequest)
    chain = given.get("chain")
    if isinstance(chain, dict):
        chain = _present(chain, Chain)
        if isinstance(chain.get("upscale"), dict):
            chain["upscale"] = _present(chain["upscale"], Upscale)
        given["chain"] = chain
    request = _convert(given, JobRequest, "")
    if not given.get("chain"):
        given.pop("chain", None)
    return Submission(request=request, given=given)


def _from_pipeline(given: dict[str, Any]) -> Submission:
    given = _present(given, JobRequest)
    for name in given:
        if name not in _BESIDE_PIPELINE:
            known = name in JobRequest.__struct_fields__
            raise invalid_field_error(name, "can't stand beside pipeline" if known else "unknown field")
    match given["pipeline"]:
        case [{"type": "generate"} as first, {"type": "upscale"} as second]:
            pass
        case _:
            raise _other_pipeline()
    second = _present(second, PipelineUpscale)
    for name in second:
        if name not in PipelineUpscale.__struct_fields__:
            raise invalid_field_error(f"pipeline[1].{name}", "unknown field")
    try:
        upscale = msgspec.convert(second, PipelineUpscale)
    except msgspec.ValidationError:
        raise _other_pipeline() from None
    first = _present(first, Generate)
    generate = _convert(first, Generate, "pipeline[0]")
    metadata = _convert({"metadata": given.get("metadata", {})}, _JobMetadata, "").metadata
    chain = Chain(upscale=Upscale(scale=upscale.scale, impl="image"))
    scale = {name: value for name, value in second.items() if name == "scale"}
    beside = {name: value for name, value in given.items() if name == "metadata"}
    return Submission(
        request=JobRequest(**asdict(generate), chain=chain, metadata=metadata),
        given=first | beside | {"chain": {"upscale": scale | {"impl": "image"}}},
        is_pipeline=True,
    )


def _other_pipeline() -> ApiError:
    # A new one each time: an exception kept and raised again gathers the frames, and so the requests, of every raise.
    return invalid_field_error("pipeline", "M5 only supports [generate, upscale]")


class _JobMetadata(msgspec.Struct, frozen=True):
    metadata: Metadata


def _convert(given: object, kind: type[T], field_path: str) -> T:
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error), field_path) from None


def _explain(text: str, field_path: str) -> ApiError:
    """An error of msgspec, with the field's place put into words of the contract."""
    found = _PLACE.match(text)
    reason, path = (found["reason"], found["path"] or "") if found else (text, "")
    path = path.removesuffix("[...]")
    named = _NAMED.match(reason)
    if named:
        path = f"{path}.{named['name']}"
        reason = "unknown field" if "unknown" in reason else "required"
    field = (field_path + path).lstrip(".") or "body"
    choices = _CHOICES.get(path.rpartition(".")[2])
    if choices and reason.startswith("Invalid enum value"):
        reason = f"must be one of {', '.join(map(str, choices))}"
    return invalid_field_error(field, _QUOTED.sub(_plain, reason))


def _plain(quoted: re.Match[str]) -> str:
    """Python's names of types as JSON calls them."""
    names = [_JSON_NAMES.get(name, name) for name in quoted[1].split(" | ")]
    # What is expected may always be null where it may be absent; what was got may be null alone.
    return " or ".join([name for name in names if name != "null"] or names)
