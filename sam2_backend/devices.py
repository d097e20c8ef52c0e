"""Which device computes, and what happens when it is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sam2_backend.errors import GpuMemoryError, SettingsError


def device_of(name: str) -> torch.device:
    """The device of a SAM2_DEVICE: `auto` is the first GPU, Apple's, or else the CPU.

    Raises:
        SettingsError: it does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"SAM2_DEVICE={name} does not exist here (torch {torch.__version__}). Set it to auto or cpu.") from error
    return device


_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The encoder's dtype of a SAM2_PRECISION: `auto` is fp16 on CUDA and fp32 elsewhere.

    Raises:
        SettingsError: the device does not compute in it.
    """
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise SettingsError("SAM2_PRECISION=fp16 is for GPUs. On the CPU set it to bf16 or fp32.")
    return _PRECISIONS[precision]


#: What torch says of a GPU that is full, and of a CPU's memory.
_FULL = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def device_errors() -> Iterator[None]:
    """A full device becomes GpuMemoryError; what torch itself holds in reserve is given back first."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _FULL):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise GpuMemoryError(
            "The device has no memory left. Lower SAM2_DEVICE_CACHE_BYTES, take a smaller SAM2_MODEL, or run fewer workers on it."
        ) from error
