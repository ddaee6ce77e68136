"""The body of POST /openai/v1/images/generations, translated to a job. Pure."""

import re
from typing import Any, Literal
from uuid import UUID

import msgspec

from api.errors import ApiError, invalid_field_error
from api.requests import Submission, submission_of
from orchestrator.parameters import ImageFormat

DEFAULT_MODEL_PATTERN = re.compile(r"(?:dall-e|gpt-image)-.*")
_FORMATS: dict[str, ImageFormat] = {"png": "png", "jpeg": "jpg"}
_IGNORED = frozenset(
    {
        "background",
        "moderation",
        "output_compression",
        "partial_images",
        "quality",
        "safety_identifier",
        "style",
        "user",
    }
)
_RENAMED = {
    "prompt": "prompt",
    "n": "count",
    "seed": "seed",
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
}
_OWN = {"model", "size", "response_format", "output_format", "stream", "upscale"}
_GIVEN_NAMES = {job_name: name for name, job_name in _RENAMED.items()} | {
    "width": "size",
    "height": "size",
    "format": "output_format",
    "model_id": "model",
}
_MOST_IMAGES = 10


class ImageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a call asks for: the job, and how its images are returned. stream: as server-sent events."""

    submission: Submission
    response_format: Literal["url", "b64_json"]
    stream: bool


def parse_image_request(given: dict[str, Any], model_id: UUID | None) -> ImageRequest:
    """Translate a call. model_id: the model that it names. Raises `ApiError` in the call's own names of fields."""
    given = {name: value for name, value in given.items() if value is not None and name not in _IGNORED}
    for name in given:
        if name not in _OWN and name not in _RENAMED:
            raise invalid_field_error(name, "unknown field", code="unknown_parameter")
    body: dict[str, Any] = {_RENAMED[name]: value for name, value in given.items() if name in _RENAMED}
    count = body.get("count", 1)
    if isinstance(count, int) and count > _MOST_IMAGES:
        raise invalid_field_error("n", f"must be from 1 to {_MOST_IMAGES}")
    output_format = _choice(given, "output_format", ("png", "jpeg"))
    body |= {"type": "generate", "format": _FORMATS[output_format], "metadata": {"api": "openai"}}
    body |= _size(given.get("size", "auto")) | ({} if model_id is None else {"model_id": str(model_id)})
    if "upscale" in given:
        body["chain"] = {"upscale": _upscale(given["upscale"])}
    stream = given.get("stream", False)
    if not isinstance(stream, bool):
        raise invalid_field_error("stream", "must be a boolean")
    response_format = _choice(given, "response_format", ("b64_json", "url"))
    if stream and response_format == "url":
        raise invalid_field_error("response_format", "a stream carries b64_json alone")
    try:
        submission = submission_of(body)
    except ApiError as error:
        raise in_names_of_call(error) from None
    return ImageRequest(submission=submission, response_format=response_format, stream=stream)  # type: ignore[arg-type]  # `_choice` has checked it


def in_names_of_call(error: ApiError) -> ApiError:
    """An error about a field of the job, with the name that the field has in the call."""
    details = dict(error.details or {})
    field = str(details.get("field"))
    name = "upscale" if field.startswith("chain") else _GIVEN_NAMES.get(field, field)
    if name == field or "reason" not in details:
        return error
    reason = str(details.pop("reason"))
    del details["field"]
    return invalid_field_error(name, reason, **details)


def _choice(given: dict[str, Any], name: str, choices: tuple[str, ...]) -> str:
    """One of several words; the first by default."""
    value = given.get(name, choices[0])
    if value not in choices:
        raise invalid_field_error(name, f"must be one of {', '.join(choices)}")
    return str(value)


def _size(given: object) -> dict[str, int]:
    if given == "auto":
        return {}
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", given) if isinstance(given, str) else None
    if found is None:
        raise invalid_field_error("size", "must be WIDTHxHEIGHT, or auto")
    return {"width": int(found[1]), "height": int(found[2])}


def _upscale(given: object) -> object:
    """A factor alone, or an object as in `chain.upscale`."""
    return {"scale": given} if isinstance(given, int) and not isinstance(given, bool) else given
