"""Real pipelines with tiny weights: what is asked for comes out, and comes out again."""

import itertools
import shutil
import threading
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from model_registry.checks import BadModelFiles, check_files
from orchestrator.events import DeviceMemory
from orchestrator.step_errors import InvalidInput, OutOfMemory, ProviderError
from runners.engine_host.host import EngineHost
from runners.engine_host.server import ProgressReporter as ChildReporter
from runners.engine_host.server import create_engine
from runners.engines import cache, diffusion_engine
from runners.engines.cache import ModelCache
from runners.engines.memory import MemoryMeter
from runners.engines.pipelines import open_pipeline
from runners.engines.process import EngineConfig
from runners.engines.protocol import Enlarge, ImageSpec, ModelRef, Render, RenderCancelled, Sampling
from tests.images import tiny
from tests.images.checkpoint import checkpoint
from tests.images.watching import ProgressReporter, Starved

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpmpp_2m_karras": "DPMSolverMultistepScheduler",
}


@pytest.fixture(scope="module")
def engine_host() -> EngineHost:
    return EngineHost(EngineConfig(device="cpu", batch_max=4))


@pytest.fixture(scope="module", params=["sd", "xl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = tiny.stable_diffusion if request.param == "sd" else tiny.stable_diffusion_xl
    return make(tmp_path_factory.mktemp(request.param))


def sampling(model: Path, **changes: Any) -> Sampling:
    given: dict[str, Any] = {"width": 48, "height": 32, "steps": 3, "guidance": 7.0, "scheduler": None}
    return Sampling(model=ModelRef(kind="generator", path=str(model)), **given | changes)


def spec(seed: int = 1, prompt: str = "a harbour at dawn", negative: str | None = None) -> ImageSpec:
    return ImageSpec(prompt=prompt, negative_prompt=negative, seed=seed)


def rendered(engine_host: EngineHost, shape: Sampling, *specs: ImageSpec, **how: Any) -> ProgressReporter:
    watch = ProgressReporter()
    engine_host.render(Render(sampling=shape, specs=list(specs), **how), watch)
    return watch


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_the_contract_samples(engine_host: EngineHost, model: Path, name: str) -> None:
    """By the class that stands in the picture's rendering, each to another picture than the model's own."""
    found = rendered(engine_host, sampling(model, scheduler=name), spec())
    own = rendered(engine_host, sampling(model), spec())
    assert found.renderings[0].scheduler == SCHEDULERS[name]
    assert found.steps == [([0], done, 3) for done in range(4)]
    if own.renderings[0].scheduler != SCHEDULERS[name]:
        assert np.abs(found.values() - own.values()).max() > 0


@pytest.mark.parametrize("size", [(16, 16), (33, 50), (64, 17)])
def test_a_picture_has_the_very_size_that_was_asked_for(
    engine_host: EngineHost, model: Path, size: tuple[int, int]
) -> None:
    found = rendered(engine_host, sampling(model, width=size[0], height=size[1]), spec())
    assert found.images[0].size == size
    assert min(found.images[0].getextrema()[0]) < max(found.images[0].getextrema()[0])  # type: ignore[arg-type]


def test_all_that_was_asked_for_bears_on_the_picture(engine_host: EngineHost, model: Path) -> None:
    """Prompt, negative prompt, seed, steps and guidance: each alone changes it."""
    plain = rendered(engine_host, sampling(model), spec()).values()
    others = [
        rendered(engine_host, sampling(model), spec(prompt="a forest")),
        rendered(engine_host, sampling(model), spec(negative="fog")),
        rendered(engine_host, sampling(model), spec(seed=2)),
        rendered(engine_host, sampling(model, steps=4), spec()),
        rendered(engine_host, sampling(model, guidance=2.0), spec()),
        rendered(engine_host, sampling(model, guidance=0.0), spec()),
    ]
    assert all(np.abs(other.values() - plain).max() > 0 for other in others)


def test_the_same_again_is_the_same_picture(engine_host: EngineHost, model: Path) -> None:
    """In the same process, and in one that opened the model anew."""
    first, again = (rendered(engine_host, sampling(model), spec()).values() for _ in range(2))
    anew = rendered(EngineHost(EngineConfig(device="cpu")), sampling(model), spec()).values()
    assert np.array_equal(first, again)
    assert np.array_equal(first, anew)


def test_strangers_in_the_batch_change_no_pixel_by_more_than_one(engine_host: EngineHost, model: Path) -> None:
    """And a batch of the same size, filled with anything, gives the very same pixels again."""
    alone = rendered(engine_host, sampling(model), spec()).values()
    together = rendered(engine_host, sampling(model), spec(7, "x"), spec(), spec(9, "a forest", "fog"))
    assert np.abs(together.values(1) - alone).max() <= 1
    made = together.renderings[1]
    assert (made.batch_size, made.batch_index) == (3, 1)
    again = rendered(
        engine_host, sampling(model), spec(), original_batch_size=made.batch_size, original_batch_index=made.batch_index
    )
    assert np.array_equal(again.values(), together.values(1))
    assert again.renderings[0] == made


def test_a_batch_holds_as_many_as_it_may(engine_host: EngineHost, model: Path) -> None:
    found = rendered(engine_host, sampling(model), *(spec(n) for n in range(6)))
    assert [found.renderings[n].batch_size for n in range(6)] == [4, 4, 4, 4, 2, 2]
    assert [found.renderings[n].batch_index for n in range(6)] == [0, 1, 2, 3, 0, 1]


def test_what_nobody_wants_ends_within_a_step(engine_host: EngineHost, model: Path) -> None:
    """And leaves the pipeline fit for the next."""
    before = rendered(engine_host, sampling(model, steps=5), spec()).values()
    watch = ProgressReporter(give_up_at=2)
    with pytest.raises(RenderCancelled):
        engine_host.render(Render(sampling=sampling(model, steps=5), specs=[spec()]), watch)
    assert [done for _, done, _ in watch.steps] == [0, 1]
    assert np.array_equal(rendered(engine_host, sampling(model, steps=5), spec()).values(), before)


def test_a_part_that_nobody_wants_or_that_fails_leaves_the_others(engine_host: EngineHost, model: Path) -> None:
    """Given a batch in three parts, when the first is given up and the second fails, then the third is rendered."""

    class Fickle(ProgressReporter):
        def step_done(self, items: list[int], done: int, of: int) -> None:
            if 0 in items:
                raise RenderCancelled
            if 4 in items:
                raise ProviderError("not this one")
            super().step_done(items, done, of)

    watch = Fickle()
    with pytest.raises(ProviderError, match="not this one"):
        engine_host.render(Render(sampling=sampling(model), specs=[spec(n) for n in range(10)]), watch)
    assert sorted(watch.images) == [8, 9]


def test_the_ladder_after_memory_ran_out(engine_host: EngineHost, model: Path) -> None:
    """Smaller batches, then tiling, then no way on; afterwards every pixel is what it would have been."""
    specs = [spec(n) for n in range(4)]
    before = rendered(engine_host, sampling(model), *specs)
    watch = Starved(2)
    engine_host.render(Render(sampling=sampling(model), specs=specs), watch)
    assert watch.measures == [(4, "smaller_batch"), (2, "smaller_batch")]
    assert sorted(watch.images) == [0, 1, 2, 3]
    assert watch.renderings[3].measures == ["smaller_batch"]
    assert max(np.abs(watch.values(n) - before.values(n)).max() for n in range(4)) <= 1

    tiled = Starved(1)
    engine_host.render(Render(sampling=sampling(model), specs=specs[:1]), tiled)
    assert tiled.measures == [(1, "tiling")]
    with pytest.raises(OutOfMemory, match="after all measures"):
        engine_host.render(Render(sampling=sampling(model), specs=specs[:1]), Starved(9))

    after = rendered(engine_host, sampling(model), *specs)
    assert all(np.array_equal(after.values(n), before.values(n)) for n in range(4))


def test_what_was_tiled_is_made_again_tiled(engine_host: EngineHost, model: Path) -> None:
    """A picture whose decoding was tiled differs, and is the same again where the measure is taken from the start."""
    large = sampling(model, width=640, height=64, steps=1)
    watch = Starved(1)
    engine_host.render(Render(sampling=large, specs=[spec()]), watch)
    made = watch.renderings[0]
    assert made.measures == ["tiling"]
    again = rendered(engine_host, large, spec(), original_batch_size=1, original_batch_index=0, measures=made.measures)
    assert np.array_equal(again.values(), watch.values())


def test_models_that_do_not_fit_beside_the_next_are_closed(tmp_path: Path) -> None:
    """Given room for one more, then the one used last stays open."""
    folders = [tiny.stable_diffusion(tmp_path / str(n), seed=n) for n in range(3)]
    engine_host = EngineHost(EngineConfig(device="cpu", model_bytes=10**9))
    one = rendered(engine_host, sampling(folders[0]), spec())
    small = EngineHost(EngineConfig(device="cpu", model_bytes=0))
    pictures = [rendered(small, sampling(folder), spec()).values() for folder in (*folders, folders[0])]
    assert np.array_equal(pictures[0], one.values())
    assert np.array_equal(pictures[3], one.values())
    assert np.abs(pictures[1] - pictures[0]).max() > 0
    # It lives on in memory alone: no file is read again.
    shutil.rmtree(folders[0])
    rendered(small, sampling(folders[0]), spec())
    rendered(small, sampling(folders[1]), spec())
    with pytest.raises(ProviderError):
        rendered(small, sampling(folders[0]), spec())


class Book:
    """A model to open, when as many others were closed as it needs."""

    closed: ClassVar[list[str]] = []
    size_bytes = 1

    def __init__(self, name: str, after: int) -> None:
        if len(self.closed) < after:
            raise torch.OutOfMemoryError
        self.name = name

    def close(self) -> None:
        self.closed.append(self.name)


def test_a_model_that_finds_no_memory_has_others_closed() -> None:
    """One after the other, the one used last at the end; only what does not fit alone is given up."""
    open_models = ModelCache(None)

    def opened(name: str, after: int) -> Book:
        return open_models.get(ModelRef(kind="generator", path=name), lambda ref: Book(ref.path, after))

    for name in "abc":
        opened(name, 0)
    opened("a", 0)
    assert opened("d", 2).name == "d"
    assert Book.closed == ["b", "c"]
    with pytest.raises(OutOfMemory, match="model e does not fit"):
        opened("e", 5)
    assert Book.closed == ["b", "c", "a", "d"]


def test_a_decoder_that_was_left_in_another_precision_is_put_right(tmp_path: Path) -> None:
    """As SDXL's is, which decodes in float32, when memory runs out in the midst of it."""
    ref = ModelRef(kind="generator", path=str(tiny.stable_diffusion_xl(tmp_path / "model")))
    pipeline = open_pipeline(ref, torch.device("cpu"), torch.float32)
    pipeline.pipe.vae.to(dtype=torch.float64)
    pipeline.set_scheduler(None, lambda _: None)
    assert pipeline.pipe.vae.dtype == torch.float32


def test_an_image_that_comes_to_nothing_costs_no_other(
    engine_host: EngineHost, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a batch whose second image is no number, then the first and third are handed over."""
    real = diffusion_engine.tensor_to_image
    calls = itertools.count()

    def not_finite(pixels: torch.Tensor, shape: Sampling) -> Image.Image:
        return real(pixels * torch.nan if next(calls) == 1 else pixels, shape)

    monkeypatch.setattr(diffusion_engine, "tensor_to_image", not_finite)
    watch = ProgressReporter()
    with pytest.raises(ProviderError, match="DF_DTYPE=float32"):
        engine_host.render(Render(sampling=sampling(model), specs=[spec(n) for n in range(3)]), watch)
    assert sorted(watch.images) == [0, 2]


def test_what_memory_holds_is_learnt(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given room for two images, after one fallback batches are of two; what fits only tiled is alone."""
    used = DeviceMemory(before=100, peak=300, after=100, total=1000)
    monkeypatch.setattr(MemoryMeter, "read", lambda _: used)
    monkeypatch.setattr(diffusion_engine, "free_bytes", lambda _: 250)
    engine_host = EngineHost(EngineConfig(device="cpu", batch_max=4))

    def sizes(watch: ProgressReporter, steps: int, images: int) -> list[int]:
        specs = [spec(n) for n in range(images)]
        engine_host.render(Render(sampling=sampling(model, steps=steps), specs=specs), watch)
        return [watch.renderings[n].batch_size for n in range(images)]

    assert sizes(Starved(1, counted=True), 3, 4) == [2, 2, 2, 2]
    then = ProgressReporter(counted=True)
    assert sizes(then, 3, 4) == [2, 2, 2, 2]
    assert then.measures == []
    tiled = Starved(1, counted=True)
    assert sizes(tiled, 2, 1) == [1]
    assert tiled.measures == [(1, "tiling")]
    assert sizes(ProgressReporter(counted=True), 2, 2) == [1, 1]


def test_an_engine_that_opens_a_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_KEEPALIVE_S", 0.01)
    told = threading.Event()

    class Counting(ProgressReporter):
        def model_still_opening(self) -> None:
            told.set()

    with cache.keepalive_while_opening(Counting()):
        assert told.wait(60)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    """All work is rejected, with what is to be corrected."""
    ready, render = create_engine(EngineConfig(device=device))
    assert ready.device == "none"
    watch = cast("ChildReporter", ProgressReporter())
    with pytest.raises(ProviderError, match=f"DF_DEVICE is '{device}'"):
        render(Render(sampling=sampling(Path("none")), specs=[spec()]), watch)


def test_a_tile_that_nobody_wants_ends_within_a_step(tmp_path: Path) -> None:
    """Given an upscaler that samples, then it tells of every step of a tile, and ends after the one it is told to."""
    engine_host = EngineHost(EngineConfig(device="cpu"))
    model = ModelRef(kind="diffusion-upscaler", path=str(tiny.diffusion_upscaler(tmp_path / "model")))
    work = Enlarge(model=model, scale=4, strict=False, width=16, height=16, pixels=bytes(768), spec=spec())
    watch = ProgressReporter()
    engine_host.render(work, watch)
    assert watch.images[0].size == (64, 64)
    assert len(watch.steps) == 1 + 30 + 1

    class Abandoning(ProgressReporter):
        def step_done(self, items: list[int], done: int, of: int) -> None:
            super().step_done(items, done, of)
            if len(self.steps) == 5:
                raise RenderCancelled

    abandoning = Abandoning()
    with pytest.raises(RenderCancelled):
        engine_host.render(work, abandoning)
    again = ProgressReporter()
    engine_host.render(work, again)
    assert np.array_equal(again.values(), watch.values())


def test_what_may_run_code_is_not_opened(tmp_path: Path) -> None:
    """Given a pickle or a program beside the weights, then it is rejected by name, unless the model is trusted."""
    folder = tiny.stable_diffusion(tmp_path / "model")
    (folder / "unet" / "extra.bin").write_bytes(b"\x80\x04.")
    engine_host = EngineHost(EngineConfig(device="cpu"))
    with pytest.raises(ProviderError, match=r"extra\.bin.*--trust"):
        rendered(engine_host, sampling(folder), spec())
    trusted = ModelRef(kind="generator", path=str(folder), trusted=True)
    watch = ProgressReporter()
    engine_host.render(Render(sampling=replace(sampling(folder), model=trusted), specs=[spec()]), watch)
    assert watch.images


@pytest.mark.parametrize(
    ("weights", "instead"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
        ("unet/diffusion_pytorch_model.safetensors", "unet/model.safetensors"),
        ("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"),
        ("text_encoder/model.safetensors", "text_encoder/diffusion_pytorch_model.safetensors"),
    ],
)
def test_weights_under_another_name_are_neither_added_nor_opened(tmp_path: Path, weights: str, instead: str) -> None:
    """Given weights that no library looks for, then `models add` says before what the engine says later."""
    folder = tiny.stable_diffusion(tmp_path / "model")
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    check_files(folder, "generator", paths, trust=False)
    (folder / weights).rename(folder / instead)
    with pytest.raises(BadModelFiles, match=weights.replace("/", " holds no ")):
        check_files(folder, "generator", paths - {weights} | {instead}, trust=False)
    with pytest.raises(ProviderError, match=Path(weights).name):
        rendered(EngineHost(EngineConfig(device="cpu")), sampling(folder), spec())


def test_a_single_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    """Given all weights in one file, and the configuration in a folder of its name, then every pixel is the same."""
    folder = tiny.stable_diffusion(tmp_path / "folder")
    checkpoint(folder, tmp_path / "one.safetensors")
    shutil.copytree(folder, tmp_path / "one", ignore=shutil.ignore_patterns("*.safetensors"))
    engine_host = EngineHost(EngineConfig(device="cpu"))
    single = tmp_path / "one.safetensors"
    check_files(single, "generator", [single.name], trust=False)
    shape = sampling(single)
    model = replace(shape.model, weights_sha256="ab" * 32)
    found = rendered(engine_host, replace(shape, model=model), spec())
    assert found.renderings[0].weights_sha256 == "ab" * 32
    assert np.array_equal(found.values(), rendered(engine_host, sampling(folder), spec()).values())


@pytest.mark.parametrize("what", ["nothing", "an upscaler", "garbage"])
def test_what_is_no_generator_is_rejected(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model"
    if what == "an upscaler":
        tiny.diffusion_upscaler(path)
    elif what == "garbage":
        path = tmp_path / "model.safetensors"
        path.write_bytes(b"garbage")
    else:
        path.mkdir()
    with pytest.raises(ProviderError, match="model"):
        rendered(EngineHost(EngineConfig(device="cpu")), sampling(path), spec())


def test_a_model_for_flow_matching_takes_no_other_scheduler(tmp_path: Path) -> None:
    folder = tiny.stable_diffusion(tmp_path / "model", flow=True)
    with pytest.raises(InvalidInput, match="FlowMatchEulerDiscreteScheduler"):
        rendered(EngineHost(EngineConfig(device="cpu")), sampling(folder, scheduler="ddim"), spec())
