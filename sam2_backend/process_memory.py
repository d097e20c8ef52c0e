"""What a worker's process does with the memory that it frees."""

from __future__ import annotations

import ctypes
import os

#: malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Above the activations of every SAM 2; a photograph of more than 85 megapixels still goes back.
_KEPT_BLOCK_BYTES, _KEPT_BYTES = 256 << 20, 512 << 20


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed for the next image, in place of giving it back and having every page made, and zeroed, anew.

    The process then stays near its peak. Does nothing where MALLOC_* variables of the environment already say how it should be, or
    malloc is not glibc's.

    Returns:
        Whether malloc was told.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
