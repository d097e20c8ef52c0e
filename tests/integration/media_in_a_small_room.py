"""Puts files through the worker's media path, one after another, in a process with little memory: a line of JSON for each.

Run as a program: a folder whose files are named NUMBER.KIND, kind image, video or volume. A file that hangs ends the process by an alarm.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from pathlib import Path

from sam2_backend.errors import MediaError
from sam2_backend.frame_sources import open_frames
from sam2_backend.images import load_rgb
from sam2_backend.media import MediaStore
from sam2_backend.messages import MediaRef
from sam2_backend.settings import MIB, Settings
from sam2_backend.video_messages import FrameSource

MAX_PIXELS = 4_000_000
ROOM_BYTES = 1024 * MIB
"""Address space beyond what the imports took: whoever wants more gets a MemoryError."""
LONGEST_S = 60


def settings_of(folder: Path) -> Settings:
    return Settings(
        data_dir=folder / "data",
        local_files_root=str(folder),
        media_max_pixels=MAX_PIXELS,
        video_max_pixels=MAX_PIXELS,
        video_max_bytes=64 * MIB,
        video_max_frames=10_000,
    )


def look_at(path: Path, store: MediaStore, settings: Settings) -> str:
    """What a worker says of a file; "" where it can use it."""
    ref, kind = MediaRef(path.as_uri()), path.suffix[1:]
    try:
        if kind == "image":
            load_rgb(store.fetch(ref).data, "upright", settings.media_max_pixels)
            return ""
        with open_frames(FrameSource((ref,), kind, 25.0, 0), store, settings) as frames:
            frames.read(0)
            frames.read(frames.n_frames - 1)
    except MediaError as error:
        return f"{error.code}: {error.message}"
    return ""


def used_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_small() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM_BYTES, taken + ROOM_BYTES))


def main(folder: Path) -> None:
    settings = settings_of(folder)
    store = MediaStore(settings, None)
    import av  # noqa: F401  before the room gets small
    import nibabel  # noqa: F401
    import pydicom.pixels  # noqa: F401
    import tifffile  # noqa: F401

    for path in folder.glob("warm-up.*"):
        look_at(path, store, settings)
    make_small()
    for path in sorted(folder.glob("[0-9]*.*"), key=lambda path: int(path.stem)):
        print(json.dumps({"begins": int(path.stem)}), flush=True)
        signal.alarm(LONGEST_S)
        before, started = used_mib(), time.monotonic()
        said = look_at(path, store, settings)
        line = {"number": int(path.stem), "said": said, "grown_mib": used_mib() - before, "spent_s": time.monotonic() - started}
        print(json.dumps(line), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
