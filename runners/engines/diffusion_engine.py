"""The diffusers engine renders batches of images.

    batch ─▶ as many at once as fit ─▶ sample ─▶ decode ─▶ pictures
                    ▲                     │ memory runs out
                    └── smaller batch ─▶ tiling ─▶ offload ◀┘ ─▶ give up

An image depends on its spec, on how many are rendered at once and on its index among them, but not on what
the others show. So one is made again, to the last bit on the same machine, in a batch of that size, whatever fills it.
"""

from collections.abc import Sequence
from importlib.metadata import version

import torch
from PIL import Image

from orchestrator.events.steps import Measure, Memory, Rendering
from orchestrator.step_errors import OutOfMemory, ProviderError, StepError
from runners.engines.cache import ModelCache, opening
from runners.engines.memory import Meter, device_name, figures, free_bytes, is_out_of_memory, release
from runners.engines.pipelines import Pipeline, open_pipeline
from runners.engines.protocol import Abandoned, Render, Sampling, Watch

_HEADROOM = 0.9
"""The part of the free memory that is planned with: allocators waste some."""


class DiffusionEngine:
    """Renders with whatever pipeline diffusers opens. batch_max: images at once, at most."""

    def __init__(self, models: ModelCache, device: torch.device, dtype: torch.dtype, *, batch_max: int) -> None:
        self._models = models
        self._device = device
        self._dtype = dtype
        self._batch_max = batch_max
        self._bytes_an_image: dict[Sampling, int] = {}
        self._one_at_a_time: set[Sampling] = set()
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True

    def render(self, work: Render, watch: Watch) -> None:
        """Render a batch, a part of it at a time. Raises `StepError` and `Abandoned`.

        A part that fails, or that nobody wants any more, keeps no other from being rendered: they may be other jobs'.
        """
        shape = work.sampling
        with opening(watch):
            pipeline = self._models.get(shape.model, lambda ref: open_pipeline(ref, self._device, self._dtype))
        fallback = MemoryFallback(pipeline, self._models, work)
        size = work.as_batch_of or self._fitting(shape)
        places = list(range(len(work.specs)))
        failure: StepError | Abandoned | None = None
        try:
            while places:
                part = places[:size]
                try:
                    done = self._part(pipeline, work, part, fallback, watch)
                except (StepError, Abandoned) as error:
                    failure = error if failure is None or isinstance(failure, Abandoned) else failure
                    done = True
                if done:
                    places = places[len(part) :]
                else:
                    size = fallback.size
        finally:
            fallback.undo()
        if failure is not None:
            raise failure

    def _part(
        self, pipeline: Pipeline, work: Render, part: list[int], fallback: "MemoryFallback", watch: Watch
    ) -> bool:
        """Render some images at once. Answers False if memory ran out, and the next measure was taken.

        An image that comes to nothing keeps no other from being handed over.
        """
        shape = work.sampling
        meter = Meter(self._device)
        try:
            scheduler, images = self._sample(pipeline, work, part, watch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold the tensors
            fallback.next_measure(part, meter.read(), watch)
            return False
        memory = meter.read()
        self._learn(shape, memory, len(part), fallback.measures)
        failure: StepError | None = None
        for n, (index, pixels) in enumerate(zip(part, images, strict=True)):
            try:
                image = to_picture(pixels, shape)
            except ProviderError as error:
                failure = error
                continue
            rendering = Rendering(
                engine="diffusers",
                device=device_name(self._device),
                dtype=str(self._dtype).removeprefix("torch."),
                versions=versions(),
                model_id=shape.model.model_id,
                model_sha256=shape.model.sha256,
                weights_sha256=shape.model.weights_sha256,
                scheduler=scheduler,
                batch_size=work.as_batch_of or len(part),
                batch_index=work.from_index + n,
                measures=list(fallback.measures),
            )
            watch.pixels(index, image, rendering, memory)
        if failure is not None:
            raise failure
        return True

    def _sample(self, pipeline: Pipeline, work: Render, part: list[int], watch: Watch) -> tuple[str, torch.Tensor]:
        """The scheduler's class, and the images' pixels, of 0 to 1, in main memory."""
        shape = work.sampling
        specs = [work.specs[index] for index in part]
        for spec in specs:
            watch.inject(spec)
        batch = specs
        if work.as_batch_of is not None:
            batch = [specs[0]] * work.as_batch_of
            batch[work.from_index : work.from_index + len(specs)] = specs

        def stepped(done: int) -> None:
            watch.stepped(part, min(done, shape.steps), shape.steps)

        scheduler = pipeline.schedule(shape.scheduler, stepped)
        width, height = (-(-side // pipeline.multiple) * pipeline.multiple for side in (shape.width, shape.height))
        asked = {
            "prompt": [spec.prompt for spec in batch],
            "negative_prompt": [spec.negative_prompt or "" for spec in batch],
            "width": width,
            "height": height,
            "num_inference_steps": shape.steps,
            "guidance_scale": shape.guidance,
            # On the CPU, so that an image begins with the same noise on every device and in every batch.
            "generator": [torch.Generator("cpu").manual_seed(spec.seed) for spec in batch],
            "output_type": "pt",
        }
        given = {name: value for name, value in asked.items() if name in pipeline.parameters}
        stepped(0)
        try:
            with torch.inference_mode():
                images = pipeline.pipe(**given).images
        except ValueError as error:  # the pipeline's own check of what was asked
            raise ProviderError(f"the model refuses what was asked: {error}") from error
        return scheduler, images[work.from_index : work.from_index + len(part)].float().cpu()

    def _fitting(self, shape: Sampling) -> int:
        """How many images of a kind are worth trying at once."""
        if shape in self._one_at_a_time:
            return 1
        free, each = free_bytes(self._device), self._bytes_an_image.get(shape)
        if free is None or each is None:
            return self._batch_max
        return min(self._batch_max, max(1, int(free * _HEADROOM) // each))

    def _learn(self, shape: Sampling, memory: Memory | None, images: int, measures: Sequence[Measure]) -> None:
        if memory is None:
            return
        if {"tiling", "offload"} & set(measures):
            self._one_at_a_time.add(shape)
        else:
            self._bytes_an_image[shape] = max(1, (memory.peak - memory.before) // images)


class MemoryFallback:
    """What is tried when memory runs out, one measure after the other. What it changes of a pipeline it undoes.

    size: how many images to try at once after the last measure.
    """

    def __init__(self, pipeline: Pipeline, models: ModelCache, work: Render) -> None:
        self._pipeline = pipeline
        self._models = models
        self._fixed = work.as_batch_of
        self.size = 1
        self.measures: list[Measure] = []
        for measure in work.measures:
            self._apply(measure)

    def next_measure(self, part: list[int], memory: Memory | None, watch: Watch) -> None:
        """Take the next measure after a part of a batch did not fit. Raises `OutOfMemory` where nothing is left."""
        size = self._fixed or len(part)
        self._models.clear()
        release(self._pipeline.device)
        measure = self._next(size)
        watch.short(part, size, measure, memory)
        if measure is None:
            raise OutOfMemory(f"an image did not fit into the device's memory, whatever was tried{figures(memory)}")
        self._apply(measure)
        self.size = (size + 1) // 2 if measure == "smaller_batch" else size

    def undo(self) -> None:
        """Leave the pipeline as it was, so that the next batch's pixels are what they would have been."""
        pipe = self._pipeline.pipe
        if "tiling" in self.measures:
            pipe.vae.disable_tiling()
            pipe.vae.disable_slicing()
        if "offload" in self.measures:
            pipe.remove_all_hooks()
            pipe.to(self._pipeline.device)

    def _next(self, size: int) -> Measure | None:
        if size > 1 and self._fixed is None:
            return "smaller_batch"
        if "tiling" not in self.measures and hasattr(getattr(self._pipeline.pipe, "vae", None), "enable_tiling"):
            return "tiling"
        if "offload" not in self.measures and self._pipeline.device.type == "cuda":
            return "offload"
        return None

    def _apply(self, measure: Measure) -> None:
        if measure not in self.measures:
            self.measures.append(measure)
        pipe = self._pipeline.pipe
        if measure == "tiling":
            pipe.vae.enable_tiling()
            pipe.vae.enable_slicing()
        elif measure == "offload":
            pipe.enable_model_cpu_offload(device=self._pipeline.device)


def to_picture(pixels: torch.Tensor, shape: Sampling) -> Image.Image:
    """A picture of exactly the size asked for, from (3, height, width) values of 0 to 1, cut around the middle."""
    if not torch.isfinite(pixels).all():
        raise ProviderError("the model came to no picture but to numbers that are none; try DF_DTYPE=float32")
    _, height, width = pixels.shape
    top, left = (height - shape.height) // 2, (width - shape.width) // 2
    cut = pixels[:, top : top + shape.height, left : left + shape.width]
    # As diffusers' own way to a picture rounds.
    return Image.fromarray((cut.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy(), "RGB")


def versions() -> dict[str, str]:
    """Of what a picture's last bits may depend on."""
    found = {name: version(name) for name in ("diffusers", "torch", "transformers")}
    if torch.version.cuda is not None and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found
