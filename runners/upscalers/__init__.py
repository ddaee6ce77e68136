"""Upscalers enlarge images: `worker` is the runner's part of the step, `image` resamples, others have models."""
