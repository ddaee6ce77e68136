"""AC-4: artifacts of both steps, their keys, and the pixels behind them."""

import hashlib
import io
import re
from typing import Any

import httpx
from PIL import Image

from orchestrator.plan import item_seed
from tests.kit import Api

KEY = r"dreamforge/default/jobs/{job}/{step}/\d{{8}}T\d{{6}}_{index}_{size}_{seed}\.{ext}"


def by_step(artifacts: list[Any], step: str) -> list[Any]:
    """The artifacts of one step, in the order given."""
    return [one for one in artifacts if one["step"] == step]


def picture(artifact: Any) -> Image.Image:
    """The image behind a presigned URL, its recorded size and hash checked."""
    body = httpx.get(artifact["url"], trust_env=False).raise_for_status().content
    assert len(body) == artifact["bytes"]
    assert hashlib.sha256(body).hexdigest() == artifact["sha256"]
    return Image.open(io.BytesIO(body))


def test_both_steps_have_artifacts_whose_keys_name_them(api: Api) -> None:
    """Keys carry job, step, index, size and seed; index and seed are the parent's."""
    job_id = api.create(count=3, width=64, height=48, seed=11)
    api.finished(job_id)
    artifacts = api.artifacts(job_id)
    assert [(one["step"], one["item_index"]) for one in artifacts] == [
        *(("generate", index) for index in range(3)),
        *(("upscale", index) for index in range(3)),
    ]
    for index in range(3):
        seed = item_seed(11, 3, index)
        for step, size in (("generate", "64x48"), ("upscale", "128x96")):
            one = by_step(artifacts, step)[index]
            pattern = KEY.format(job=job_id, step=step, index=index, size=size, seed=seed, ext="png")
            assert re.fullmatch(pattern, one["s3_key"]), one["s3_key"]
            assert one["seed"] == seed
            assert f"{one['width']}x{one['height']}" == size


def test_the_pixels_are_there_in_the_recorded_sizes_and_never_flat(api: Api) -> None:
    """Every presigned URL serves an image of the size, length and hash that the log recorded."""
    job_id = api.create(count=2)
    api.finished(job_id)
    artifacts = api.artifacts(job_id)
    assert len(artifacts) == 4
    pictures = [picture(one) for one in artifacts]
    for one, image in zip(artifacts, pictures, strict=True):
        assert image.size == (one["width"], one["height"])
        assert image.format == "PNG"
        assert any(low != high for low, high in image.convert("RGB").getextrema())  # type: ignore[misc]
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_the_step_parameter_chooses_one_steps_artifacts(api: Api) -> None:
    """Only generate and upscale are steps."""
    job_id = api.create()
    api.finished(job_id)
    assert [one["step"] for one in api.artifacts(job_id, step="upscale")] == ["upscale"]
    answer = api.http.get(f"/v1/jobs/{job_id}/artifacts", params={"step": "sharpen"})
    assert answer.status_code == 422
    assert answer.json()["details"]["field"] == "step"


def test_jpeg_is_honoured_and_inherited(api: Api) -> None:
    """The upscaled file has its parent's format."""
    job_id = api.create(format="jpg")
    api.finished(job_id)
    for one in api.artifacts(job_id):
        assert one["format"] == "jpg"
        assert one["s3_key"].endswith(".jpg")
        assert picture(one).format == "JPEG"


def test_the_same_request_with_the_same_seed_gives_the_same_pixels(api: Api) -> None:
    """The fake engine is deterministic; files that don't say where they came from are equal to the last byte."""
    pixels, hashes = [], []
    for embed in (True, False, False):
        job_id = api.create(count=2, seed=5, embed_metadata=embed)
        api.finished(job_id)
        artifacts = api.artifacts(job_id)
        pixels.append([picture(one).tobytes() for one in artifacts])
        hashes.append([one["sha256"] for one in artifacts])
    assert pixels[0] == pixels[1] == pixels[2]
    assert hashes[1] == hashes[2] != hashes[0]
