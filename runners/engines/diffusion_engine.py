"""The diffusers engine renders batches of images.

    batch ─▶ as many images as fit ─▶ sample ─▶ decode ─▶ images
                    ▲                     │ memory runs out
                    └── smaller batch ─▶ tiling ─▶ offload ◀┘ ─▶ OutOfMemory

An image depends on its spec, on the batch size and on its index in the batch, but not on the other images. It can
therefore be reproduced, bit by bit on the same machine, in a batch of that size with any other content.
"""

from collections.abc import Sequence
from importlib.metadata import version

import torch
from PIL import Image

from orchestrator.events import DeviceMemory, MemoryMeasure, Rendering
from orchestrator.step_errors import OutOfMemory, ProviderError, StepFailure
from runners.engines.cache import ModelCache, keepalive_while_opening
from runners.engines.memory import MemoryMeter, device_name, free_bytes, is_out_of_memory, memory_text, release_memory
from runners.engines.pipelines import Pipeline, open_pipeline
from runners.engines.protocol import Render, RenderCancelled, RenderListener, Sampling

_USABLE_MEMORY_SHARE = 0.9
"""The usable part of the free memory: allocators waste some."""


class DiffusionEngine:
    """Renders with any pipeline that diffusers opens. batch_max: most images in a batch."""

    def __init__(self, models: ModelCache, device: torch.device, dtype: torch.dtype, *, batch_max: int) -> None:
        self._models = models
        self._device = device
        self._dtype = dtype
        self._batch_max = batch_max
        self._bytes_per_image: dict[Sampling, int] = {}
        self._one_at_a_time: set[Sampling] = set()
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True

    def render(self, work: Render, listener: RenderListener) -> None:
        """Render a batch in parts that fit into memory. Raises `StepFailure` and `RenderCancelled`.

        After a part fails or is cancelled, the other parts are still rendered: they may belong to other jobs.
        """
        sampling = work.sampling
        with keepalive_while_opening(listener):
            pipeline = self._models.get(sampling.model, lambda ref: open_pipeline(ref, self._device, self._dtype))
        fallback = MemoryFallback(pipeline, self._models, work)
        size = work.original_batch_size or self._batch_size(sampling)
        pending = list(range(len(work.specs)))
        failure: StepFailure | RenderCancelled | None = None
        try:
            while pending:
                part = pending[:size]
                try:
                    done = self._render_part(pipeline, work, part, fallback, listener)
                except (StepFailure, RenderCancelled) as error:
                    failure = error if failure is None or isinstance(failure, RenderCancelled) else failure
                    done = True
                if done:
                    pending = pending[len(part) :]
                else:
                    size = fallback.size
        finally:
            fallback.restore_pipeline()
        if failure is not None:
            raise failure

    def _render_part(
        self, pipeline: Pipeline, work: Render, part: list[int], fallback: "MemoryFallback", listener: RenderListener
    ) -> bool:
        """Render some images at once. Returns False if memory ran out and the next measure was applied.

        If an image is invalid, the others are still delivered.
        """
        sampling = work.sampling
        meter = MemoryMeter(self._device)
        try:
            scheduler, images = self._sample(pipeline, work, part, listener)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold the tensors
            fallback.next_measure(part, meter.read(), listener)
            return False
        memory = meter.read()
        self._record_memory(sampling, memory, len(part), fallback.measures)
        failure: StepFailure | None = None
        for n, (index, pixels) in enumerate(zip(part, images, strict=True)):
            try:
                image = tensor_to_image(pixels, sampling)
            except ProviderError as error:
                failure = error
                continue
            rendering = Rendering(
                engine="diffusers",
                device=device_name(self._device),
                dtype=str(self._dtype).removeprefix("torch."),
                versions=library_versions(),
                model_id=sampling.model.model_id,
                model_sha256=sampling.model.sha256,
                weights_sha256=sampling.model.weights_sha256,
                scheduler=scheduler,
                batch_size=work.original_batch_size or len(part),
                batch_index=work.original_batch_index + n,
                measures=list(fallback.measures),
            )
            listener.image_rendered(index, image, rendering, memory)
        if failure is not None:
            raise failure
        return True

    def _sample(
        self, pipeline: Pipeline, work: Render, part: list[int], listener: RenderListener
    ) -> tuple[str, torch.Tensor]:
        """The name of the scheduler's class, and the images' pixels from 0 to 1, in main memory."""
        sampling = work.sampling
        specs = [work.specs[index] for index in part]
        for spec in specs:
            listener.inject_fault(spec)
        batch = specs
        if work.original_batch_size is not None:
            batch = [specs[0]] * work.original_batch_size
            batch[work.original_batch_index : work.original_batch_index + len(specs)] = specs

        def stepped(done: int) -> None:
            listener.step_done(part, min(done, sampling.steps), sampling.steps)

        scheduler = pipeline.set_scheduler(sampling.scheduler, stepped)
        width, height = (
            -(-side // pipeline.size_multiple) * pipeline.size_multiple for side in (sampling.width, sampling.height)
        )
        arguments = {
            "prompt": [spec.prompt for spec in batch],
            "negative_prompt": [spec.negative_prompt or "" for spec in batch],
            "width": width,
            "height": height,
            "num_inference_steps": sampling.steps,
            "guidance_scale": sampling.guidance,
            # On the CPU: the initial noise is the same on every device and in every batch.
            "generator": [torch.Generator("cpu").manual_seed(spec.seed) for spec in batch],
            "output_type": "pt",
        }
        supported = {name: value for name, value in arguments.items() if name in pipeline.parameters}
        stepped(0)
        try:
            with torch.inference_mode():
                images = pipeline.pipe(**supported).images
        except ValueError as error:  # the pipeline validates its arguments
            raise ProviderError(f"the model rejects the parameters: {error}") from error
        return scheduler, images[work.original_batch_index : work.original_batch_index + len(part)].float().cpu()

    def _batch_size(self, sampling: Sampling) -> int:
        """How many images with these parameters to render at once."""
        if sampling in self._one_at_a_time:
            return 1
        free, each = free_bytes(self._device), self._bytes_per_image.get(sampling)
        if free is None or each is None:
            return self._batch_max
        return min(self._batch_max, max(1, int(free * _USABLE_MEMORY_SHARE) // each))

    def _record_memory(
        self, sampling: Sampling, memory: DeviceMemory | None, images: int, measures: Sequence[MemoryMeasure]
    ) -> None:
        if memory is None:
            return
        if {"tiling", "offload"} & set(measures):
            self._one_at_a_time.add(sampling)
        else:
            self._bytes_per_image[sampling] = max(1, (memory.peak - memory.before) // images)


class MemoryFallback:
    """Applies one measure after another when memory runs out. `restore_pipeline` undoes them.

    size: how many images to render at once after the last measure.
    """

    def __init__(self, pipeline: Pipeline, models: ModelCache, work: Render) -> None:
        self._pipeline = pipeline
        self._models = models
        self._fixed = work.original_batch_size
        self.size = 1
        self.measures: list[MemoryMeasure] = []
        for measure in work.measures:
            self._apply(measure)

    def next_measure(self, part: list[int], memory: DeviceMemory | None, listener: RenderListener) -> None:
        """Apply the next measure after a part did not fit. Raises `OutOfMemory` if there is none."""
        size = self._fixed or len(part)
        self._models.close_others()
        release_memory(self._pipeline.device)
        measure = self._choose_measure(size)
        listener.memory_exhausted(part, size, measure, memory)
        if measure is None:
            raise OutOfMemory(f"an image did not fit into the device's memory after all measures{memory_text(memory)}")
        self._apply(measure)
        self.size = (size + 1) // 2 if measure == "smaller_batch" else size

    def restore_pipeline(self) -> None:
        """Restore the pipeline, so that the measures do not change the pixels of later batches."""
        pipe = self._pipeline.pipe
        if "tiling" in self.measures:
            pipe.vae.disable_tiling()
            pipe.vae.disable_slicing()
        if "offload" in self.measures:
            pipe.remove_all_hooks()
            pipe.to(self._pipeline.device)

    def _choose_measure(self, size: int) -> MemoryMeasure | None:
        if size > 1 and self._fixed is None:
            return "smaller_batch"
        if "tiling" not in self.measures and hasattr(getattr(self._pipeline.pipe, "vae", None), "enable_tiling"):
            return "tiling"
        if "offload" not in self.measures and self._pipeline.device.type == "cuda":
            return "offload"
        return None

    def _apply(self, measure: MemoryMeasure) -> None:
        if measure not in self.measures:
            self.measures.append(measure)
        pipe = self._pipeline.pipe
        if measure == "tiling":
            pipe.vae.enable_tiling()
            pipe.vae.enable_slicing()
        elif measure == "offload":
            pipe.enable_model_cpu_offload(device=self._pipeline.device)


def tensor_to_image(pixels: torch.Tensor, sampling: Sampling) -> Image.Image:
    """An image of exactly the requested size, cropped around the centre from (3, height, width) values of 0 to 1."""
    if not torch.isfinite(pixels).all():
        raise ProviderError("the model returned values that are not finite; try DF_DTYPE=float32")
    _, height, width = pixels.shape
    top, left = (height - sampling.height) // 2, (width - sampling.width) // 2
    cut = pixels[:, top : top + sampling.height, left : left + sampling.width]
    # Rounds as diffusers' own conversion does.
    return Image.fromarray((cut.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy(), "RGB")


def library_versions() -> dict[str, str]:
    """Versions of the libraries on which an image's exact pixels depend."""
    names = {name: version(name) for name in ("diffusers", "torch", "transformers")}
    if torch.version.cuda is not None and torch.cuda.is_available():
        names["cuda"] = torch.version.cuda
    return names
