from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Maps and frees 64 MiB some times, and counts the pages that had to be made.
PROGRAM = """
import ctypes, resource
from sam2_backend.process_memory import keep_freed_memory
print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def once():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[str, int]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, check=True)
    said, n_pages = done.stdout.split()
    return said, int(n_pages)


@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="malloc is not glibc's")
def test_memory_that_was_freed_is_there_for_the_next_image():
    said, n_pages = run()
    assert said == "True"
    assert n_pages < 1000
    assert run(MALLOC_MMAP_THRESHOLD_="131072")[1] > 50_000


def test_whoever_set_malloc_up_is_left_alone():
    assert run(MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
