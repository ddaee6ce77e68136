"""POST /v1/jobs: every bound and default, the three forms, and what is answered."""

import json
from typing import Any
from uuid import UUID

import pytest

from orchestrator.plan import item_seed
from tests.http.conftest import BODY, invalid
from tests.kit import NOBODY, Api, connect

UPSCALE = {"type": "upscale"}
SEED_MAX = 2**53 - 1
PAIRS = {f"{n:064}": "x" * 512 for n in range(16)}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BOUNDS: list[tuple[str, list[Any], list[Any]]] = [
    ("prompt", ["x", "🏰" * 4096, " "], ["", "🏰" * 4097, 7, None]),
    ("negative_prompt", ["", "x" * 4096], ["x" * 4097, 7]),
    ("width", [16, 4096, 64.0], [15, 4097, 64.5, "64", True]),
    ("height", [16, 4096, 64.0], [15, 4097, 64.5, "64", True]),
    ("steps", [1, 200], [0, 201, "2"]),
    ("guidance", [0, 50, 7.5], [-0.1, 50.1, "7", 1e300]),
    ("scheduler", ["dpmpp_2m_karras", "unipc", "euler", "ddim"], ["Euler", "", 1]),
    ("format", ["png", "jpg"], ["jpeg", "PNG", ""]),
    ("embed_metadata", [True, False], ["true", 1]),
    ("seed", [0, 1, SEED_MAX], [-1, SEED_MAX + 1, 1.5, "7"]),
    ("count", [1, 100], [0, 101, "2"]),
    ("model_id", [], ["default", str(NOBODY), 7]),
    ("provider", ["", "anyone at all"], [7]),
    ("engine", ["sdxl", "flux-srpo"], ["fake", ""]),
    ("metadata", [{}, PAIRS], [PAIRS | {"one": "more"}, {"x" * 65: ""}, {"a": "x" * 513}, {"a": 7}, [], "a"]),
    ("chain", [None, {}, {"upscale": None}, {"upscale": {}}], [{"sharpen": {}}, [], "upscale"]),
    ("type", ["generate"], ["upscale", "", None, 7]),
]


def params(api: Api, **more: Any) -> Any:
    """What became of a small request with some fields."""
    return api.job(api.create(**{"scale": None} | more))["params"]


@pytest.mark.parametrize(("field", "good"), [(field, value) for field, good, _ in BOUNDS for value in good])
def test_every_field_is_accepted_up_to_its_bounds(lone: Api, field: str, good: Any) -> None:
    job = lone.job(lone.create(**{"scale": None, field: good}))
    shown = job["metadata"] if field == "metadata" else job["params"][field]
    if field != "chain":
        assert shown == good


@pytest.mark.parametrize(("field", "bad"), [(field, value) for field, _, bad in BOUNDS for value in bad])
def test_every_field_is_rejected_beyond_them_and_named(lone: Api, field: str, bad: Any) -> None:
    answer = lone.post(BODY | {field: bad})
    assert answer.status_code == 422, answer.text
    assert answer.json()["details"]["field"].split(".")[0] == field


@pytest.mark.parametrize("number", ["1e999", "NaN", "Infinity"])
def test_guidance_is_finite(lone: Api, number: str) -> None:
    """JSON has no other numbers; one too large for a float is none of ours either."""
    content = f'{{"type":"generate","prompt":"x","guidance":{number}}}'
    assert lone.http.post("/v1/jobs", content=content).status_code == 422


def test_what_is_not_given_takes_its_default(lone: Api) -> None:
    """And null is as good as absent, in every optional field."""
    least = {"type": "generate", "prompt": "x"}
    nothing = dict.fromkeys([field for field, *_ in BOUNDS if field not in least] + ["pipeline"])
    for body in (least, least | nothing):
        job = lone.job(lone.post(body).json()["job"]["id"])
        seed = job["params"].pop("seed")
        assert 1 <= seed <= 2**31 - 1
        assert job["params"] == {
            **least,
            "negative_prompt": None,
            "width": 1024,
            "height": 1024,
            "steps": 30,
            "guidance": 7.0,
            "scheduler": None,
            "format": "png",
            "embed_metadata": True,
            "count": 1,
            "model_id": None,
            "provider": None,
            "engine": None,
            "chain": None,
        }
        assert job["metadata"] == {}


@pytest.mark.parametrize("field", ["type", "prompt"])
def test_what_is_required_is_missed(lone: Api, field: str) -> None:
    invalid(lone.post({name: value for name, value in BODY.items() if name != field}), field)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"colour": 1}, "colour"),
        ({"colour": None}, "colour"),
        ({"chain": {"colour": 1}}, "chain.colour"),
        ({"chain": {"upscale": {"mode": "image"}}}, "chain.upscale.mode"),
        ({"chain": {"upscale": {"scale": 3}}}, "chain.upscale.scale"),
        ({"chain": {"upscale": {"scale": "2"}}}, "chain.upscale.scale"),
        ({"chain": {"upscale": {"impl": "best"}}}, "chain.upscale.impl"),
        ({"chain": {"upscale": {"strict_scale": 1}}}, "chain.upscale.strict_scale"),
    ],
)
def test_an_unknown_field_or_value_is_named_with_its_place(lone: Api, more: dict[str, Any], field: str) -> None:
    invalid(lone.post(BODY | more), field)


@pytest.mark.parametrize("impl", ["auto", "image", "gan", "diffusion"])
@pytest.mark.parametrize("scale", [2, 4])
def test_only_the_diffusion_upscaler_has_a_strict_scale(lone: Api, impl: str, scale: int) -> None:
    """`strict_scale` with diffusion and scale 2 is rejected; everything else is recorded."""
    upscale = {"scale": scale, "impl": impl, "strict_scale": True}
    answer = lone.post(BODY | {"chain": {"upscale": upscale}})
    if (impl, scale) == ("diffusion", 2):
        invalid(answer, "chain.upscale.strict_scale")
    else:
        assert lone.job(answer.json()["job"]["id"])["params"]["chain"] == {"upscale": upscale}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"pipeline": [BODY | {"width": 1}, UPSCALE]}, "pipeline[0].width"),
        ({"pipeline": [BODY | {"colour": 1}, UPSCALE]}, "pipeline[0].colour"),
        ({"pipeline": [{"type": "generate"}, UPSCALE]}, "pipeline[0].prompt"),
        ({"pipeline": [BODY | {"metadata": {}}, UPSCALE]}, "pipeline[0].metadata"),
        ({"pipeline": [BODY, UPSCALE | {"colour": 1}]}, "pipeline[1].colour"),
        ({"pipeline": [BODY, UPSCALE], "type": "generate"}, "type"),
        ({"pipeline": [BODY, UPSCALE], "prompt": "x"}, "prompt"),
        ({"pipeline": [BODY, UPSCALE], "chain": {}}, "chain"),
        ({"pipeline": [BODY, UPSCALE], "colour": 1}, "colour"),
        ({"pipeline": [BODY | {"model_id": str(NOBODY)}, UPSCALE]}, "pipeline[0].model_id"),
    ],
)
def test_a_bad_field_of_a_pipeline_is_named_with_its_place(lone: Api, body: dict[str, Any], field: str) -> None:
    invalid(lone.post(body), field)


def test_a_pipeline_takes_metadata_and_nulls_beside_it(lone: Api) -> None:
    nothing = {"type": None, "chain": None, "prompt": None}
    body = {"pipeline": [BODY | {"seed": None}, UPSCALE | {"scale": None, "mode": None}], "metadata": {"a": "b"}}
    job = lone.job(lone.post(body | nothing).json()["job"]["id"])
    assert job["metadata"] == {"a": "b"}
    assert job["params"]["chain"] == {"upscale": {"scale": 2, "impl": "image", "strict_scale": False}}


@pytest.mark.parametrize(
    ("size", "scale", "accepted"),
    [
        ((256, 256), None, True),
        ((256, 272), None, False),
        ((128, 128), 2, True),
        ((144, 128), 2, False),
        ((65, 64), 4, False),
    ],
)
def test_an_output_of_too_many_pixels_is_rejected(
    tuned: Api,
    size: tuple[int, int],
    scale: int | None,
    accepted: bool,  # noqa: FBT001
) -> None:
    """DF_MAX_PIXELS, here 65536, counts after the upscale."""
    chain = None if scale is None else {"upscale": {"scale": scale}}
    answer = tuned.post(BODY | {"width": size[0], "height": size[1], "chain": chain})
    assert answer.status_code == (202 if accepted else 422)


def test_by_default_an_output_has_64_megapixels_at_most(lone: Api) -> None:
    for side, status in ((4000, 202), (4096, 422)):
        body = BODY | {"width": side, "height": side, "chain": {"upscale": {"scale": 2}}}
        assert lone.post(body).status_code == status


def test_a_seed_is_drawn_once_and_recorded(lone: Api) -> None:
    """In the job's first event."""
    drawn = set()
    for _ in range(3):
        job_id = lone.create()
        seed = lone.job(job_id)["params"]["seed"]
        assert json.loads(lone.history(job_id)[0]["data"])["generate"]["seed"] == seed
        drawn.add(seed)
    assert len(drawn) == 3


@pytest.mark.parametrize(("seed", "count"), [(0, 1), (SEED_MAX, 1), (0, 3)])
def test_every_item_has_a_seed_of_its_own(api: Api, seed: int, count: int) -> None:
    """One item uses the base seed as it is; several get distinct ones, by a pure function. Upscaled ones inherit it."""
    job_id = api.create(seed=seed, count=count)
    api.finished(job_id)
    seeds = [one["seed"] for one in api.artifacts(job_id)]
    assert seeds == [item_seed(seed, count, index) for index in range(count)] * 2
    if count == 1:
        assert set(seeds) == {seed}
    else:
        assert len(set(seeds)) == count
        assert all(1 <= one <= 2**31 - 1 for one in seeds)


def test_the_answer_is_the_new_job(lone: Api) -> None:
    """202, Location, ETag, and the job in few words; it is there when the answer is."""
    answer = lone.post(BODY)
    assert answer.status_code == 202
    job = answer.json()["job"]
    assert answer.json().keys() == {"job"}
    assert job.keys() == {"id", "status", "type", "created_at", "links"}
    assert (job["status"], job["type"]) == ("queued", "generate")
    assert (answer.headers["Location"], answer.headers["ETag"]) == (f"/v1/jobs/{job['id']}", '"v1"')
    shown = lone.job(job["id"])
    assert {name: shown[name] for name in job} == job
    assert [step["status"] for step in shown["steps"]] == ["queued"]


def test_an_old_client_gets_200(old: Api) -> None:
    """DF_CREATE_STATUS=200 always answers so."""
    answer = old.post(BODY)
    assert (answer.status_code, answer.json()["job"]["status"]) == (200, "queued")


async def rows(url: str, job_id: str) -> list[Any]:
    """A job's events as the database has them."""
    connection = await connect(url)
    found = await connection.fetch(
        "select * from eventstore.events where stream_id = $1 order by version", UUID(job_id)
    )
    await connection.close()
    return list(found)


@pytest.mark.parametrize(("given", "kept"), [(TRACE, TRACE), ("00-0-0-0", None), ("", None)])
async def test_what_a_client_calls_its_requests_can_be_erased(
    lone: Api, lone_url: str, given: str, kept: str | None
) -> None:
    """Given a request id and a traceparent, then they lie in `private` alone, of each event that a request is."""
    named = {"traceparent": given, "X-Request-Id": "jane.doe"}
    job_id = lone.post(BODY, **named).json()["job"]["id"]
    lone.http.post(f"/v1/jobs/{job_id}/cancel", headers=named)
    created, cancelled = await rows(lone_url, job_id)
    for event in (created, cancelled):
        private = json.loads(event["private"])
        assert (private["request_id"], private["traceparent"]) == ("jane.doe", kept)
        assert "jane.doe" not in event["meta"] + event["data"]
        assert "traceparent" not in event["meta"]
    connection = await connect(lone_url)
    assert await connection.fetchval("select eventstore.erase($1)", UUID(job_id)) == 2
    await connection.close()
    for event in await rows(lone_url, job_id):
        assert "jane.doe" not in str(dict(event))
        assert TRACE not in str(dict(event))


async def test_a_request_that_its_client_does_not_name_has_nothing_private(lone: Api, lone_url: str) -> None:
    job_id = lone.create()
    lone.http.post(f"/v1/jobs/{job_id}/cancel")
    assert (await rows(lone_url, job_id))[1]["private"] is None
