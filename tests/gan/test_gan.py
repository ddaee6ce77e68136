"""Networks with seeded weights, opened by spandrel, enlarge as was asked for."""

import json
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN

from artifacts.object_store import S3Config
from orchestrator.step_errors import InvalidInput, OutOfMemory, ProviderError
from runners.engine_host.host import EngineHost
from runners.engines.process import EngineConfig
from runners.engines.protocol import Enlarge, ImageSpec, ModelRef, RenderCancelled
from tests.conftest import Backends, fresh_database
from tests.http.conftest import running
from tests.images.watching import ProgressReporter, Starved
from tests.kit import Api, dreamforge, roles_environ


def compact(scale: int, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=scale, act_type="prelu")


def esrgan(scale: int, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=scale)


def kept(network: torch.nn.Module, file: Path) -> Path:
    """A network's weights in a file."""
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    if file.suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file)
    return file


@pytest.fixture(scope="module")
def engine_host() -> EngineHost:
    return EngineHost(EngineConfig(device="cpu"))


@pytest.fixture(scope="module", params=["compact", "esrgan"])
def four(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that enlarges by 4."""
    network = compact(4) if request.param == "compact" else esrgan(4)
    return kept(network, tmp_path_factory.mktemp(request.param) / "x4.safetensors")


def picture(width: int, height: int) -> Image.Image:
    """Something smooth with a little noise, as pictures are."""
    dice = np.random.default_rng(1)
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([columns * 3 % 256, rows * 2 % 256, (rows + columns) % 256], -1)
    values = smooth + dice.integers(0, 9, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8), "RGB")


def work(model: Path, image: Image.Image, scale: int, *, strict: bool = False, **ref: Any) -> Enlarge:
    return Enlarge(
        model=ModelRef(kind="gan-upscaler", path=str(model), **ref),
        scale=scale,
        strict=strict,
        width=image.width,
        height=image.height,
        pixels=image.tobytes(),
        spec=ImageSpec(prompt="", negative_prompt=None, seed=1),
    )


def enlarged(engine_host: EngineHost, asked: Enlarge) -> ProgressReporter:
    watch = ProgressReporter()
    engine_host.render(asked, watch)
    return watch


@pytest.mark.parametrize("scale", [2, 4])
def test_it_enlarges_by_what_was_asked_for(engine_host: EngineHost, four: Path, scale: int) -> None:
    """A model of another scale is reduced; whatever the picture's size."""
    for size in [(40, 24), (17, 1), (33, 51)]:
        found = enlarged(engine_host, work(four, picture(*size), scale))
        assert found.images[0].size == (size[0] * scale, size[1] * scale)
    made = found.renderings[0]
    assert (made.engine, made.device, made.dtype) == ("gan", "cpu", "float32")
    assert {"spandrel", "torch", "torchvision"} == made.versions.keys()


def test_its_pixels_are_the_networks(engine_host: EngineHost, four: Path) -> None:
    """As the network itself computes them, rounded to the nearest shade; the same again."""
    image = picture(32, 24)
    network = (compact(4) if "compact" in str(four) else esrgan(4)).eval()
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        expected = (network(values)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    first, again = (enlarged(engine_host, work(four, image, 4)).values() for _ in range(2))
    assert np.abs(first - expected).max() <= 1
    assert np.array_equal(first, again)


def test_a_smaller_model_is_applied_twice(engine_host: EngineHost, tmp_path: Path) -> None:
    two = kept(compact(2), tmp_path / "x2.safetensors")
    assert enlarged(engine_host, work(two, picture(20, 12), 4)).images[0].size == (80, 48)
    with pytest.raises(InvalidInput, match="by 2, not by 4"):
        engine_host.render(work(two, picture(20, 12), 4, strict=True), ProgressReporter())
    assert enlarged(engine_host, work(two, picture(20, 12), 2, strict=True)).images[0].size == (40, 24)


def test_in_tiles_it_is_what_it_is_in_one_piece(engine_host: EngineHost, four: Path) -> None:
    """Within a shade: these networks look a few pixels around, less than what the tiles share."""
    image = picture(150, 90)
    whole = enlarged(engine_host, work(four, image, 4))
    tiles = Starved(2)
    engine_host.render(work(four, image, 4), tiles)
    assert tiles.measures == [(1, "tiling")] * 2
    assert tiles.renderings[0].tile == 64
    assert len(tiles.steps) > len(whole.steps)
    assert np.abs(tiles.values() - whole.values()).max() <= 1
    # Made again in tiles of that size it is the very same, and the next picture gets whole tiles again.
    again = enlarged(engine_host, replace(work(four, image, 4), tile=64))
    assert np.array_equal(again.values(), tiles.values())
    assert np.array_equal(enlarged(engine_host, work(four, image, 4)).values(), whole.values())


def test_memory_that_never_suffices_fails_the_picture(engine_host: EngineHost, four: Path) -> None:
    with pytest.raises(OutOfMemory, match="tile of 32 pixels"):
        engine_host.render(work(four, picture(40, 40), 4), Starved(99))


def test_what_nobody_wants_ends_at_the_next_tile(engine_host: EngineHost, four: Path) -> None:
    watch = ProgressReporter(give_up_at=1)
    with pytest.raises(RenderCancelled):
        engine_host.render(work(four, picture(600, 300), 4), watch)
    assert not watch.images


def test_what_may_run_code_or_enlarges_nothing_is_rejected(engine_host: EngineHost, tmp_path: Path) -> None:
    pickled = kept(compact(2), tmp_path / "x2.pth")
    with pytest.raises(ProviderError, match=r"x2\.pth.*--trust"):
        engine_host.render(work(pickled, picture(8, 8), 2), ProgressReporter())
    assert enlarged(engine_host, work(pickled, picture(8, 8), 2, trusted=True)).images
    denoiser = kept(compact(1), tmp_path / "x1.safetensors")
    with pytest.raises(ProviderError, match="enlarges no RGB image"):
        engine_host.render(work(denoiser, picture(8, 8), 2), ProgressReporter())
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"garbage")
    with pytest.raises(ProviderError, match="can't be opened"):
        engine_host.render(work(garbage, picture(8, 8), 2), ProgressReporter())


@pytest.fixture
def environ(backends: Backends, s3_config: S3Config) -> Iterator[tuple[str, dict[str, str]]]:
    """A service with models on the CPU: its address, and how commands reach its backends."""
    more = {"DF_FAKE_RUNNER": "0", "DF_DEVICE": "cpu"}
    with fresh_database(backends) as url, running("up", url, s3_config, **more) as service:
        yield service.url, roles_environ(url, s3_config, **more)


def test_a_job_by_a_registered_gan(environ: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """`auto` takes it where there is one; the history names it, and it is made again to the last bit."""
    url, commands = environ
    network = kept(compact(4), tmp_path / "x4.safetensors")
    added = dreamforge("models", "add", str(network), "--kind", "gan-upscaler", "--output", "json", **commands)
    assert added.returncode == 0, added.stderr
    model_id = json.loads(added.stdout)["id"]
    with closing(Api(url)) as api:
        for impl, scale in (("gan", 4), ("auto", 2)):
            job = api.create(scale=None, chain={"upscale": {"scale": scale, "impl": impl}})
            found = api.finished(job, within=120)
            assert found["status"] == "succeeded", found
            upscale = found["steps"][1]["metadata"]
            assert (upscale["engine"], upscale["model_id"]) == ("gan", model_id)
            [artifact] = api.artifacts(job, step="upscale")
            body = httpx.get(artifact["url"], trust_env=False).content
            assert pixels(body).shape == (64 * scale, 64 * scale, 3)
    again = dreamforge("audit", "reproduce", job, "--json", **commands)
    assert [one["difference"] for one in json.loads(again.stdout)] == [0, 0]


def pixels(body: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(body)))
