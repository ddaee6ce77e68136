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
from orchestrator.copying import copy_fields
from orchestrator.events import Idempotency, JobCreated, PersonalText, PlannedStep
from orchestrator.parameters import (
    PARAMETERS,
    EngineName,
    Generate,
    GenerateParams,
    ImageFormat,
    ScaleFactor,
    SchedulerName,
    Upscale,
    UpscaleImpl,
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
    scale: ScaleFactor = 2
    mode: Literal["image"] = "image"


PIPELINE_ELEMENT_TYPES = (Generate, PipelineUpscale)
"""The elements of `pipeline`."""
SCHEMA_RULES_BY_TYPE = {
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
    """A request in two readings: `request` with its defaults filled, `given_body` as it came, but for its form.

    is_pipeline: the form in which it came.
    """

    request: JobRequest
    given_body: dict[str, Any]
    is_pipeline: bool = False

    def client_field_path(self, field: str) -> str:
        """Where a field of `request` stands in the form that the client used."""
        if not self.is_pipeline:
            return field
        return "pipeline[1].scale" if field == "chain.upscale.scale" else f"pipeline[0].{field}"

    def generate_parameters(self) -> dict[str, Any]:
        """What is asked of the model that generates, defaults filled; what is left to the model is left out."""
        asked = msgspec.to_builtins(self.request)
        return {name: asked[name] for name in PARAMETERS if asked[name] is not None}

    def idempotency_record(self, key: bytes) -> Idempotency:
        """What is kept of an Idempotency-Key, and of the request that came with it.

        The request is kept as an HMAC under the key, which is nowhere kept itself: it would else tell a short prompt
        after its erasure. Of the request as given, so that a later release's defaults make no false conflict.
        """
        canonical = msgspec.json.encode(self.given_body, order="sorted")
        return Idempotency(key_sha256=sha256(key).hexdigest(), request_hmac=hmac.digest(key, canonical, "sha256").hex())


_FIELDS_ALLOWED_BESIDE_PIPELINE = {"pipeline", "metadata"}
# msgspec names the place in the message only: "Expected `int` <= 100 - at `$.count`", "… - at `key` in `$.metadata`".
_MSGSPEC_ERROR_PATTERN = re.compile(r"^(?P<reason>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)
_QUOTED_TYPE_PATTERN = re.compile(r"`([^`]*)`")
_JSON_TYPE_BY_PYTHON_TYPE = {"int": "integer", "str": "string", "float": "number", "bool": "boolean"}
_CHOICES_BY_FIELD = {
    "type": ("generate",),
    "scheduler": get_args(SchedulerName),
    "format": get_args(ImageFormat),
    "engine": get_args(EngineName),
    "impl": get_args(UpscaleImpl),
    "scale": get_args(ScaleFactor),
}
_NAMED_FIELD_ERROR_PATTERN = re.compile(
    r"^Object (?:contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL
)


def parse_job_request(body: bytes) -> Submission:
    """Read a request of any of the three forms. Raises `ApiError` naming the field that is wrong."""
    return submission_of(decode_json_object(body))


def submission_of(given: dict[str, Any]) -> Submission:
    """The request that an object states. Raises `ApiError` naming the field that is wrong."""
    return _parse_pipeline_form(given) if given.get("pipeline") is not None else _parse_chain_form(given)


def decode_json_object(body: bytes) -> dict[str, Any]:
    """A body that must be one JSON object, without duplicate keys and text that can't be kept."""
    if not body.strip():
        raise invalid_field_error("body", "empty; send a JSON object")
    try:
        given = _normalise_json(msgspec.json.decode(body), ())
        if body.count(b":") != _count_keys(given):  # one of them is in a text, or behind a key that was dropped
            _reject_duplicate_keys(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_field_error("body", _invalid_json_reason(body, error)) from None
    except RecursionError:
        raise invalid_field_error("body", "nested too deeply") from None
    if not isinstance(given, dict):
        raise invalid_field_error("body", "must be a JSON object")
    return given


def job_created_event(
    submission: Submission,
    *,
    seed: int,
    step_ids: tuple[UUID, UUID],
    max_pixels: int,
    idempotency: Idempotency | None = None,
) -> tuple[JobCreated, PersonalText]:
    """The first event of the job that a request asks for, and its private part.

    seed: used where the request names none. Raises `ApiError` for what would come out too large.
    """
    request = submission.request
    upscale = None if request.chain is None or request.chain.upscale is None else request.chain.upscale
    if upscale is not None and upscale.strict_scale and upscale.impl == "diffusion" and upscale.scale == 2:
        raise invalid_field_error(
            "chain.upscale.strict_scale", "the diffusion upscaler is made for scale 4; scale 2 is derived"
        )
    generate = copy_fields(request, GenerateParams, seed=seed if request.seed is None else request.seed)
    params = None if upscale is None else copy_fields(upscale, UpscaleParams)
    names = ["generate"] if params is None else ["generate", "upscale"]
    steps = [PlannedStep(step_id=step_id, name=name) for step_id, name in zip(step_ids, names, strict=False)]
    created = JobCreated(type="generate", steps=steps, generate=generate, upscale=params, idempotency=idempotency)
    width, height = output_size(created.parameters(), names[-1])
    if width * height > max_pixels:
        field = submission.client_field_path("chain.upscale.scale" if params else "width")
        raise invalid_field_error(
            field, f"the output of {width}x{height} is over {max_pixels} pixels", max_pixels=max_pixels
        )
    private = PersonalText(prompt=request.prompt, negative_prompt=request.negative_prompt, metadata=request.metadata)
    return created, private


def _invalid_json_reason(body: bytes, error: Exception) -> str:
    if "out of range" in str(error):
        return "holds a number that is out of range"
    # msgspec takes the lone half of a surrogate pair for a text that was cut off.
    hint = " (perhaps a lone surrogate, an escape like \\ud800)" if rb"\ud" in body.lower() else ""
    return f"not valid JSON: {error}{hint}"


def _count_keys(value: Any) -> int:
    match value:
        case dict():
            return len(value) + sum(map(_count_keys, value.values()))
        case list():
            return sum(map(_count_keys, value))
        case _:
            return 0


class _ObjectWithDuplicateKey(dict[str, Any]):
    """An object that has a key twice."""

    key: str


def _reject_duplicate_keys(body: bytes) -> None:
    """Refuse an object that has a key twice: one value would be taken here, and perhaps the other by another reader."""
    doubled = []

    def gathered(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        doubled.append(_ObjectWithDuplicateKey(found))
        doubled[-1].key = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return doubled[-1]

    # msgspec, which has found the body sound, keeps the last of them without a word.
    whole = json.loads(body, object_pairs_hook=gathered, parse_int=str, parse_float=str)
    if doubled:
        field_path = _first_duplicate_key_path(whole, ()) or (doubled[0].key,)
        raise invalid_field_error("".join(field_path).lstrip("."), "stands there twice")


def _first_duplicate_key_path(value: Any, field_path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Where the first key is that an object has twice, in pieces. None within a value that a doubled key hides."""
    if isinstance(value, _ObjectWithDuplicateKey):
        return (*field_path, ".", value.key)
    match value:
        case dict():
            inner = (_first_duplicate_key_path(one, (*field_path, ".", name)) for name, one in value.items())
        case list():
            inner = (_first_duplicate_key_path(one, (*field_path, f"[{n}]")) for n, one in enumerate(value))
        case _:
            return None
    return next((found for found in inner if found is not None), None)


def _normalise_json(value: Any, field_path: tuple[str, ...]) -> Any:
    """Whole numbers written as floats become integers; text that PostgreSQL can't keep is refused.

    field_path: of the value, in pieces: joined at every level, those of a deep body would fill the memory.
    """
    match value:
        case float() if value.is_integer():
            return int(value)
        case str() if "\0" in value:
            raise invalid_field_error("".join(field_path).lstrip(".") or "body", "contains U+0000")
        case dict():
            for key in value:
                _normalise_json(key, field_path)
            return {key: _normalise_json(one, (*field_path, ".", key)) for key, one in value.items()}
        case list():
            return [_normalise_json(one, (*field_path, f"[{n}]")) for n, one in enumerate(value)]
        case _:
            return value


def _drop_null_fields(given: dict[str, Any], struct_type: type[msgspec.Struct]) -> dict[str, Any]:
    """A known field that is null is as good as absent."""
    return {
        name: value for name, value in given.items() if value is not None or name not in struct_type.__struct_fields__
    }


def _parse_chain_form(given: dict[str, Any]) -> Submission:
    given = _drop_null_fields({name: value for name, value in given.items() if name != "pipeline"}, JobRequest)
    chain = given.get("chain")
    if isinstance(chain, dict):
        chain = _drop_null_fields(chain, Chain)
        if isinstance(chain.get("upscale"), dict):
            chain["upscale"] = _drop_null_fields(chain["upscale"], Upscale)
        given["chain"] = chain
    request = _convert_to_struct(given, JobRequest, "")
    if not given.get("chain"):
        given.pop("chain", None)
    return Submission(request=request, given_body=given)


def _parse_pipeline_form(given: dict[str, Any]) -> Submission:
    given = _drop_null_fields(given, JobRequest)
    for name in given:
        if name not in _FIELDS_ALLOWED_BESIDE_PIPELINE:
            known = name in JobRequest.__struct_fields__
            raise invalid_field_error(name, "can't stand beside pipeline" if known else "unknown field")
    match given["pipeline"]:
        case [{"type": "generate"} as first, {"type": "upscale"} as second]:
            pass
        case _:
            raise _unsupported_pipeline_error()
    second = _drop_null_fields(second, PipelineUpscale)
    for name in second:
        if name not in PipelineUpscale.__struct_fields__:
            raise invalid_field_error(f"pipeline[1].{name}", "unknown field")
    try:
        upscale = msgspec.convert(second, PipelineUpscale)
    except msgspec.ValidationError:
        raise _unsupported_pipeline_error() from None
    first = _drop_null_fields(first, Generate)
    generate = _convert_to_struct(first, Generate, "pipeline[0]")
    metadata = _convert_to_struct({"metadata": given.get("metadata", {})}, _MetadataField, "").metadata
    chain = Chain(upscale=Upscale(scale=upscale.scale, impl="image"))
    scale = {name: value for name, value in second.items() if name == "scale"}
    beside = {name: value for name, value in given.items() if name == "metadata"}
    return Submission(
        request=JobRequest(**asdict(generate), chain=chain, metadata=metadata),
        given_body=first | beside | {"chain": {"upscale": scale | {"impl": "image"}}},
        is_pipeline=True,
    )


def _unsupported_pipeline_error() -> ApiError:
    # A new one each time: an exception kept and raised again gathers the frames, and so the requests, of every raise.
    return invalid_field_error("pipeline", "M5 only supports [generate, upscale]")


class _MetadataField(msgspec.Struct, frozen=True):
    metadata: Metadata


def _convert_to_struct(given: object, struct_type: type[T], field_path: str) -> T:
    try:
        return msgspec.convert(given, struct_type)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error), field_path) from None


def _validation_error(msgspec_message: str, field_path: str) -> ApiError:
    """An error of msgspec, with the field's place put into words of the contract."""
    found = _MSGSPEC_ERROR_PATTERN.match(msgspec_message)
    reason, path = (found["reason"], found["path"] or "") if found else (msgspec_message, "")
    path = path.removesuffix("[...]")
    named = _NAMED_FIELD_ERROR_PATTERN.match(reason)
    if named:
        path += "." + (named["name"] or '""')
        reason = "unknown field" if "unknown" in reason else "required"
    field = (field_path + path).lstrip(".") or "body"
    choices = _CHOICES_BY_FIELD.get(path.rpartition(".")[2])
    if choices and reason.startswith("Invalid enum value"):
        reason = f"must be one of {', '.join(map(str, choices))}"
    return invalid_field_error(field, _QUOTED_TYPE_PATTERN.sub(_json_type_names, reason))


def _json_type_names(quoted: re.Match[str]) -> str:
    """Python's names of types as JSON calls them."""
    names = [_JSON_TYPE_BY_PYTHON_TYPE.get(name, name) for name in quoted[1].split(" | ")]
    # What is expected may always be null where it may be absent; what was got may be null alone.
    return " or ".join([name for name in names if name != "null"] or names)
