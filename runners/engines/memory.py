"""A device's memory: how much of it a batch takes, and what running out of it looks like."""

import gc
import os

import torch

from orchestrator.events.steps import Memory

_SIGNS = ("out of memory", "can't allocate memory", "alloc_failed", "not enough memory")
"""What CUDA, the CPU's allocator and cuBLAS or cuDNN say, where they raise a mere RuntimeError."""


def best_device() -> torch.device:
    """The best device of this machine: CUDA, then Apple's GPU, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """The precision that a device is best at: bfloat16 has the range that keeps pictures from turning black."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def device_name(device: torch.device) -> str:
    """A device as the log names it."""
    return f"cuda:{torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def total_bytes(device: torch.device) -> int:
    """All memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(device: torch.device) -> int | None:
    """What a batch may take of a device's memory; None where nobody counts."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + cached)


class Meter:
    """What one batch takes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def read(self) -> Memory | None:
        """The figures so far; None where nobody counts."""
        if self._device.type != "cuda":
            return None
        return Memory(
            before=self._before,
            peak=torch.cuda.max_memory_allocated(self._device),
            after=torch.cuda.memory_allocated(self._device),
            total=total_bytes(self._device),
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Does an error say that memory ran out?"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def release(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def figures(memory: Memory | None) -> str:
    """Memory figures for a message."""
    if memory is None:
        return ""
    names = (("before", memory.before), ("at most", memory.peak), ("of", memory.total))
    return " (MiB: " + ", ".join(f"{name} {value >> 20:,}" for name, value in names) + ")"
