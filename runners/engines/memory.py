"""A device's memory: how much a batch uses, and which errors mean that it ran out."""

import gc
import os

import torch

from orchestrator.events import DeviceMemory

_OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "alloc_failed", "not enough memory")
"""Texts by which CUDA, the CPU allocator, cuBLAS and cuDNN report it in a plain RuntimeError."""


def best_device() -> torch.device:
    """The best device of this machine: CUDA, then Apple's GPU, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """The best precision for a device. bfloat16 has the range of float32: float16 can overflow to black images."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def device_name(device: torch.device) -> str:
    """A device's name in events."""
    return f"cuda:{torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def total_bytes(device: torch.device) -> int:
    """The size of a device's memory in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a device's memory that a batch may use; None if the device does not report it."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + cached)


class MemoryMeter:
    """Measures the memory that one batch uses."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def read(self) -> DeviceMemory | None:
        """The measurements so far; None if the device does not report them."""
        if self._device.type != "cuda":
            return None
        return DeviceMemory(
            before=self._before,
            peak=torch.cuda.max_memory_allocated(self._device),
            after=torch.cuda.memory_allocated(self._device),
            total=total_bytes(self._device),
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY_TEXTS)


def release_memory(device: torch.device) -> None:
    """Collect garbage, and return cached memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_text(memory: DeviceMemory | None) -> str:
    """Memory figures for a message."""
    if memory is None:
        return ""
    names = (("before", memory.before), ("at most", memory.peak), ("of", memory.total))
    return " (MiB: " + ", ".join(f"{name} {value >> 20:,}" for name, value in names) + ")"
