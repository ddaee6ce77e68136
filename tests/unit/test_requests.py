"""What POST /v1/jobs accepts: every bound at its edge and one beyond, and the words of each rejection."""

import json
import traceback
import tracemalloc
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ApiError
from api.requests import JobRequest, job_created_event, parse_job_request
from eventstore.ids import new_id
from orchestrator.events import JobCreated, PersonalText
from orchestrator.parameters import LARGEST_SEED

BASE: dict[str, Any] = {"type": "generate", "prompt": "a castle"}
ONLY = {"field": "pipeline", "reason": "M5 only supports [generate, upscale]"}
STEP_IDS = (new_id(), new_id())


def read(body: object) -> JobRequest:
    """A request as it is understood."""
    return parse_job_request(json.dumps(body).encode()).request


def rejected(body: object) -> dict[str, Any]:
    """The details with which a request is rejected."""
    with pytest.raises(ApiError) as caught:
        read(body)
    assert caught.value.code == "invalid_input"
    assert caught.value.details is not None
    return dict(caught.value.details)


def rejected_bytes(body: bytes) -> dict[str, Any]:
    """The details with which a body is rejected."""
    with pytest.raises(ApiError) as caught:
        parse_job_request(body)
    return dict(caught.value.details or {})


def chained(**upscale: Any) -> dict[str, Any]:
    """A request that chains an upscale."""
    return {**BASE, "chain": {"upscale": upscale}}


def piped(
    *, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None, **beside: Any
) -> dict[str, Any]:
    """A request in the form of a pipeline."""
    return {"pipeline": [{**BASE, **(first or {})}, {"type": "upscale", **(second or {})}], **beside}


def job_of(body: object, *, seed: int = 7, max_pixels: int = 64_000_000) -> tuple[JobCreated, PersonalText]:
    """The first event of the job that a request asks for."""
    return job_created_event(
        parse_job_request(json.dumps(body).encode()), seed=seed, step_ids=STEP_IDS, max_pixels=max_pixels
    )


ACCEPTED: dict[str, list[Any]] = {
    "prompt": ["x", "x" * 4096, "\U0001f3f0" * 4096],
    "negative_prompt": ["", "x" * 4096],
    "width": [16, 4096, 64.0],
    "height": [16, 4096, 64.0],
    "steps": [1, 200],
    "guidance": [0, 50, 0.0, 50.0, 7.5],
    "scheduler": ["dpmpp_2m_karras", "unipc", "euler", "ddim"],
    "format": ["png", "jpg"],
    "embed_metadata": [True, False],
    "seed": [0, 1, LARGEST_SEED],
    "count": [1, 100, 3.0],
    "model_id": [str(UUID(int=1))],
    "provider": ["", "anyone at all"],
    "engine": ["sdxl", "flux-srpo"],
    "metadata": [{}, {"k" * 64: "v" * 512}, {str(n): "" for n in range(16)}],
}
REJECTED: dict[str, list[Any]] = {
    "type": ["upscale", "", 1],
    "prompt": ["", "x" * 4097, 1, ["x"]],
    "negative_prompt": ["x" * 4097, False],
    "width": [15, 4097, 64.5, "64", True],
    "height": [15, 4097, 64.5, "64", False],
    "steps": [0, 201, "30"],
    "guidance": [-0.001, 50.001, "7", True, 10**400],
    "scheduler": ["", "EULER", "lcm"],
    "format": ["jpeg", "PNG", "webp"],
    "embed_metadata": [1, 0, 1.0, "true"],
    "seed": [-1, 2**53, 1e300, 0.5, "7"],
    "count": [0, 101, True, "1"],
    "model_id": ["sdxl", 1],
    "provider": [1, {}],
    "engine": ["", "flux"],
    "metadata": [
        {"k" * 65: "v"},
        {"k": "v" * 513},
        {"k": 1},
        {"k": None},
        {str(n): "" for n in range(17)},
        [],
    ],
    "chain": [[], "upscale", 2],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ACCEPTED.items() for value in values])
def test_every_field_is_accepted_up_to_its_bounds(field: str, value: Any) -> None:
    found = getattr(read({**BASE, field: value}), field)
    assert found == (UUID(value) if field == "model_id" else value)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in REJECTED.items() for value in values])
def test_every_field_is_rejected_beyond_them_and_named(field: str, value: Any) -> None:
    details = rejected({**BASE, field: value})
    assert details["field"] == field
    assert details["reason"]


def test_what_is_not_given_takes_its_default() -> None:
    assert read(BASE) == JobRequest(
        type="generate",
        prompt="a castle",
        negative_prompt=None,
        width=1024,
        height=1024,
        steps=30,
        guidance=7.0,
        scheduler=None,
        format="png",
        embed_metadata=True,
        seed=None,
        count=1,
        model_id=None,
        provider=None,
        engine=None,
        chain=None,
        metadata={},
    )


@pytest.mark.parametrize("field", [*sorted(ACCEPTED.keys() - {"prompt"}), "chain", "pipeline"])
def test_null_is_as_good_as_absent(field: str) -> None:
    assert read({**BASE, field: None}) == read(BASE)


@pytest.mark.parametrize("field", ["type", "prompt"])
def test_what_is_required_may_be_neither_absent_nor_null(field: str) -> None:
    without = {name: value for name, value in BASE.items() if name != field}
    assert rejected(without) == rejected({**BASE, field: None}) == {"field": field, "reason": "required"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**BASE, "sampler": "euler"}, "sampler"),
        ({**BASE, "a`b": 1}, "a`b"),
        ({**BASE, "chain": {"crop": {}}}, "chain.crop"),
        (chained(factor=2), "chain.upscale.factor"),
        (chained(mode="image"), "chain.upscale.mode"),
        (piped(first={"sampler": "euler"}), "pipeline[0].sampler"),
        (piped(first={"chain": {}}), "pipeline[0].chain"),
        (piped(second={"impl": "image"}), "pipeline[1].impl"),
        (piped(sampler="euler"), "sampler"),
    ],
)
def test_an_unknown_field_is_named(body: object, field: str) -> None:
    assert rejected(body) == {"field": field, "reason": "unknown field"}


@pytest.mark.parametrize(
    ("upscale", "field"),
    [
        ({"scale": 3}, "scale"),
        ({"scale": 1}, "scale"),
        ({"scale": "2"}, "scale"),
        ({"scale": True}, "scale"),
        ({"impl": "best"}, "impl"),
        ({"strict_scale": 1}, "strict_scale"),
    ],
)
def test_a_bad_upscale_is_named_within_the_chain(upscale: dict[str, Any], field: str) -> None:
    assert rejected(chained(**upscale))["field"] == f"chain.upscale.{field}"


def test_an_upscale_has_defaults_and_nulls_of_its_own() -> None:
    nothing = read(chained())
    assert nothing == read(chained(scale=None, impl=None, strict_scale=None)) == read(chained(scale=2.0, impl="auto"))
    created, _ = job_of(chained())
    assert created.upscale is not None
    assert (created.upscale.scale, created.upscale.impl, created.upscale.strict_scale) == (2, "auto", False)


@pytest.mark.parametrize("chain", [None, {}, {"upscale": None}])
def test_an_empty_chain_is_no_chain(chain: Any) -> None:
    assert job_of({**BASE, "chain": chain})[0] == job_of(BASE)[0]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**BASE, "prompt": "a\0b"}, "prompt"),
        ({**BASE, "provider": "\0"}, "provider"),
        ({**BASE, "metadata": {"k": "\0"}}, "metadata.k"),
        ({**BASE, "metadata": {"\0": "v"}}, "metadata"),
        ({**BASE, "\0": 1}, "body"),
        (piped(first={"prompt": "\0"}), "pipeline[0].prompt"),
    ],
)
def test_text_that_postgresql_cannot_keep_is_rejected(body: object, field: str) -> None:
    assert rejected(body) == {"field": field, "reason": "contains U+0000"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"generate"',
        b'{"type":"generate","prompt":"\\ud800"}',
        b'{"type":"generate","prompt":"\\udc00\\ud800"}',
        b'{"type":"generate","prompt":"\xed\xa0\x80"}',
        b'{"type":"generate","prompt":"x","\\ud800":1}',
        b'{"type":"generate","prompt":"\xff"}',
        b'{"type":"generate","prompt":"x","guidance":NaN}',
        b'{"type":"generate","prompt":"x","guidance":1e400}',
        b'{"type":"generate","prompt":"x"} {}',
    ],
)
def test_a_body_that_is_no_json_object_is_rejected(body: bytes) -> None:
    """Lone surrogates, escaped or raw, are no JSON that can be kept."""
    with pytest.raises(ApiError) as caught:
        parse_job_request(body)
    assert caught.value.code == "invalid_input"
    assert (caught.value.details or {})["field"] == "body"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"type":"generate","prompt":"a","prompt":"b"}', "prompt"),
        ('{"type":"generate","prompt":"a","prompt":"a"}', "prompt"),
        ('{"type":"generate","prompt":"a","\\u0070rompt":"b"}', "prompt"),
        ('{"type":"generate","prompt":"a","chain":{"upscale":{"scale":2,"scale":4}}}', "chain.upscale.scale"),
        ('{"type":"generate","prompt":"a","metadata":{"a":"1","b":"2","a":"3"}}', "metadata.a"),
        ('{"pipeline":[{"type":"generate","prompt":"a"},{"type":"upscale","type":"upscale"}]}', "pipeline[1].type"),
        ('{"type":"generate","prompt":"a","chain":{"x":1,"x":1},"chain":null}', "chain"),
    ],
)
def test_a_key_that_stands_there_twice_is_named(text: str, field: str) -> None:
    """Given two values for one key, then neither is taken: a proxy or a log may have taken the other."""
    with pytest.raises(ApiError) as error:
        parse_job_request(text.encode())
    assert error.value.details == {"field": field, "reason": "stands there twice"}


def test_a_deep_body_does_not_fill_the_memory() -> None:
    """Given names of a megabyte in all, nested as deep as may be, then no level keeps the place of each."""
    depth, name = 400, "n" * 2000
    body = (b'{"%s":' % name.encode()) * depth + b"1" + b"}" * depth
    tracemalloc.start()
    try:
        rejected_bytes(body)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", ["1" * 5000, "1e400"])
def test_a_number_out_of_range_is_called_so(number: str) -> None:
    found = rejected_bytes(b'{"type":"generate","prompt":"x","seed":%s}' % number.encode())
    assert found == {"field": "body", "reason": "holds a number that is out of range"}


def test_a_long_name_is_not_sent_back_whole() -> None:
    assert len(rejected({**BASE, "x" * 100_000: 1})["field"]) == 200


@pytest.mark.parametrize("depth", [100, 480, 700, 900, 100_000])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_deep_nesting_is_rejected_however_deep(depth: int, pair: str) -> None:
    """Given nesting that the decoder takes and the checks after it can't, then it is no bug either."""
    opened, closed = pair[:-1], pair[-1]
    body = '{"type":"generate","prompt":"x","z":' + opened * depth + "1" + closed * depth + "}"
    with pytest.raises(ApiError):
        parse_job_request(body.encode())


# Pipelines ---------------------------------------------------------------------------------------


def test_a_pipeline_asks_for_what_a_chain_with_the_image_upscaler_does() -> None:
    specs = {"width": 64, "height": 32, "seed": 3, "count": 2, "format": "jpg"}
    assert read(piped(first=specs, second={"scale": 4, "mode": "image"})) == read(
        {**BASE, **specs, "chain": {"upscale": {"scale": 4, "impl": "image"}}}
    )


def test_a_pipelines_upscale_has_defaults() -> None:
    assert read(piped()) == read(piped(second={"scale": None, "mode": None})) == read(chained(impl="image"))


def test_metadata_stands_beside_a_pipeline() -> None:
    assert read(piped(metadata={"k": "v"})).metadata == {"k": "v"}
    assert read(piped(metadata=None, type=None, chain=None)) == read(piped())
    assert rejected(piped(metadata={"k": 1}))["field"] == "metadata"


def test_the_legacy_form_makes_the_same_generate_step_as_the_others() -> None:
    legacy, chain, pipeline = (job_of(body)[0] for body in (BASE, chained(), piped()))
    assert legacy.generate == chain.generate == pipeline.generate
    assert [step.name for step in legacy.steps] == ["generate"]
    assert chain.steps == pipeline.steps
    assert [step.name for step in chain.steps] == ["generate", "upscale"]


@pytest.mark.parametrize(
    "pipeline",
    [
        [],
        {},
        "generate",
        0,
        False,
        [BASE],
        [{"type": "upscale"}],
        [{"type": "upscale"}, BASE],
        [BASE, BASE],
        [BASE, {"type": "upscale"}, {"type": "upscale"}],
        [BASE, {}],
        [BASE, None],
        [BASE, {"type": "crop"}],
        [{**BASE, "type": "paint"}, {"type": "upscale"}],
        [BASE, {"type": "upscale", "scale": 3}],
        [BASE, {"type": "upscale", "scale": "2"}],
        [BASE, {"type": "upscale", "mode": "gan"}],
        [BASE, {"type": "upscale", "mode": 1}],
    ],
)
def test_any_other_pipeline_is_rejected_in_the_plans_words(pipeline: Any) -> None:
    assert rejected({"pipeline": pipeline}) == ONLY


def test_a_bad_generate_field_of_a_pipeline_is_named() -> None:
    assert rejected(piped(first={"width": 15}))["field"] == "pipeline[0].width"
    assert rejected({"pipeline": [{"type": "generate"}, {"type": "upscale"}]}) == {
        "field": "pipeline[0].prompt",
        "reason": "required",
    }


@pytest.mark.parametrize("field", ["type", "prompt", "width", "chain", "seed", "provider"])
def test_nothing_of_the_other_forms_stands_beside_a_pipeline(field: str) -> None:
    value = {"type": "generate", "prompt": "x", "chain": {}, "provider": "x"}.get(field, 64)
    beside: dict[str, Any] = {field: value}
    assert rejected(piped(**beside)) == {"field": field, "reason": "can't stand beside pipeline"}


def test_a_rejection_keeps_nothing_of_the_rejections_before_it() -> None:
    """An exception raised a second time would hold the frames, and so the bodies, of both requests."""
    depths = []
    for _ in range(2):
        with pytest.raises(ApiError) as caught:
            read({"pipeline": []})
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert depths[0] == depths[1]


# The first event ---------------------------------------------------------------------------------


def test_personal_text_lies_apart_from_what_is_hashed() -> None:
    created, private = job_of({**BASE, "negative_prompt": "fog", "metadata": {"order": "66"}})
    assert private == PersonalText(prompt="a castle", negative_prompt="fog", metadata={"order": "66"})
    assert "castle" not in repr(created)


def test_a_seed_is_drawn_only_where_none_is_given() -> None:
    assert job_of(BASE, seed=7)[0].generate.seed == 7
    assert job_of({**BASE, "seed": None}, seed=7)[0].generate.seed == 7
    assert job_of({**BASE, "seed": 0}, seed=7)[0].generate.seed == 0


def rejected_job(body: object, **more: Any) -> dict[str, Any]:
    """The details with which a well-formed request is rejected."""
    with pytest.raises(ApiError) as caught:
        job_of(body, **more)
    assert caught.value.code == "invalid_input"
    return dict(caught.value.details or {})


def test_the_diffusion_upscaler_is_not_strictly_of_scale_two() -> None:
    strict = {"impl": "diffusion", "strict_scale": True}
    assert rejected_job(chained(**strict, scale=2))["field"] == "chain.upscale.strict_scale"
    assert job_of(chained(**strict, scale=4))
    assert job_of(chained(impl="diffusion", scale=2))
    assert job_of(chained(impl="gan", scale=2, strict_scale=True))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BASE, BASE | {"negative_prompt": None, "chain": None}),
        (BASE, BASE | {"chain": {}}),
        (BASE, BASE | {"chain": {"upscale": None}}),
        (BASE | {"width": 64}, BASE | {"width": 64.0}),
        (chained(scale=4, impl="image"), {"pipeline": [BASE, {"type": "upscale", "scale": 4}]}),
        (chained(impl="image"), {"pipeline": [BASE, {"type": "upscale", "mode": "image", "scale": None}]}),
        (
            chained(impl="image") | {"metadata": {"a": "b"}},
            {"pipeline": [BASE, {"type": "upscale"}], "metadata": {"a": "b"}},
        ),
    ],
)
def test_a_request_is_the_same_in_every_form(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Given an Idempotency-Key, then two ways of asking for one thing are no conflict."""
    first, second = (parse_job_request(json.dumps(body).encode()).idempotency_record(b"key") for body in (one, other))
    assert first == second


@pytest.mark.parametrize("change", [{"prompt": "a tower"}, {"width": 1024}, {"seed": 1}, {"metadata": {"a": "b"}}])
def test_a_request_is_compared_as_given_before_defaults(change: dict[str, Any]) -> None:
    """Naming a default differs from leaving it open, since a later release may have another."""
    first, second = (
        parse_job_request(json.dumps(body).encode()).idempotency_record(b"key") for body in (BASE, BASE | change)
    )
    assert first.key_sha256 == second.key_sha256
    assert first.request_hmac != second.request_hmac


def test_a_request_cannot_be_told_from_what_is_kept_of_it() -> None:
    """Without the key, which nobody keeps, a guessed prompt can't be checked."""
    request = parse_job_request(json.dumps(BASE).encode())
    assert request.idempotency_record(b"one").request_hmac != request.idempotency_record(b"other").request_hmac


@pytest.mark.parametrize(
    ("body", "pixels", "field"),
    [
        ({**BASE, "width": 64, "height": 32}, 64 * 32, "width"),
        ({**chained(scale=4), "width": 64, "height": 32}, 256 * 128, "chain.upscale.scale"),
    ],
)
def test_the_output_may_have_so_many_pixels_and_no_more(body: object, pixels: int, field: str) -> None:
    """The limit is on what is written in the end, after the upscale."""
    assert job_of(body, max_pixels=pixels)
    details = rejected_job(body, max_pixels=pixels - 1)
    assert (details["field"], details["max_pixels"]) == (field, pixels - 1)


# Whatever comes ----------------------------------------------------------------------------------

FIELDS = [*ACCEPTED, "type", "chain", "pipeline", "upscale", "scale", "impl", "mode", "strict_scale"]
WORDS = st.sampled_from(["generate", "upscale", "image", "png", "a castle", "\0", ""]) | st.text(max_size=5)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6)
ELEMENTS = st.builds(lambda kind, more: {"type": kind, **more}, st.sampled_from(["generate", "upscale"]), OBJECTS)
PIPELINES = st.fixed_dictionaries({"pipeline": st.lists(ELEMENTS, max_size=3)}, optional={"metadata": VALUES})


def only_a_request_or_a_rejection(body: bytes) -> None:
    """A body is understood, or rejected in a way that can be told as JSON; it never breaks the parser."""
    found: JobRequest | ApiError
    try:
        found = parse_job_request(body).request
    except ApiError as error:
        found = error
    if isinstance(found, ApiError):
        assert (found.code, bool((found.details or {})["field"])) == ("invalid_input", True)
        msgspec.json.encode(found.details)


@given(OBJECTS | OBJECTS.map(lambda more: {**BASE, **more}) | PIPELINES | VALUES)
def test_any_json_is_a_request_or_a_rejection(body: object) -> None:
    only_a_request_or_a_rejection(json.dumps(body).encode())


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_request_or_a_rejection(body: bytes) -> None:
    only_a_request_or_a_rejection(body)
    only_a_request_or_a_rejection(b'{"type":"generate","prompt":"x",' + body + b"}")


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"generate","prompt":"x","":1}',
        b'{"pipeline":[{"type":"generate","prompt":"x"},{"type":"upscale","scale":2}],"":null}',
        b'{"type":"generate","prompt":"x","":1,"":2}',
    ],
)
def test_a_field_without_a_name_is_named_by_its_quotes(body: bytes) -> None:
    """An empty `field` would name nothing."""
    with pytest.raises(ApiError) as rejected:
        parse_job_request(body)
    assert rejected.value.details is not None
    assert rejected.value.details["field"] == '""'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b'{"type":"generate","prompt":"\\ud800"}', "lone surrogate"),
        (b'{"type":"upscale","prompt":"x"}', "must be one of generate"),
        (b'{"type":"generate","prompt":"x","format":"gif"}', "must be one of png, jpg"),
        (b'{"type":"generate","prompt":"x","chain":{"upscale":{"scale":3}}}', "must be one of 2, 4"),
        (b'{"type":"generate","prompt":"x","seed":1.5}', "integer"),
        (b'{"type":"generate","prompt":"x","bogus":null}', "unknown field"),
    ],
)
def test_a_rejection_says_what_is_allowed(body: bytes, said: str) -> None:
    """In words of JSON, not of Python."""
    with pytest.raises(ApiError) as rejected:
        parse_job_request(body)
    assert rejected.value.details is not None
    assert said in rejected.value.details["reason"]
    assert "int |" not in rejected.value.message
