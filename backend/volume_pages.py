"""A medical volume as a task with pages: the editor shows pictures, so its slices become PNG files, and a task lists them in order.

Needs the extras `[worker]` and `[medical]`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from backend.task_media import LOCAL_FILES_PATH
from sam2_backend.errors import VideoUnreadableError
from sam2_backend.frame_sources import open_frames
from sam2_backend.media import MediaStore
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource

TASKS_FILE = "tasks.json"
FIELD = "images"
"""The task's field that `sam2-backend config --pages` reads."""


def write_pages(volume: Path, folder: Path, settings: Settings, prefix: str = "") -> Path:
    """Write every slice as `00001.png`, … (8-bit grey, windowed as for propagation) and a task that lists them.

    Args:
        volume: A NIfTI, DICOM or TIFF file, a zip of a DICOM series, or a folder that holds one and nothing else.
        folder: Made where it is missing; pages of the same names are written anew.
        prefix: What Label Studio puts before a page's name to fetch it; empty: its local files, counted from SAM2's local files root
            or from the folder above `folder`.

    Returns:
        The file with the task, to be imported into a project.

    Raises:
        VideoError, MediaError: there is no such file, or it is not a volume.
    """
    files = _files(volume)
    root = files[0].parent.resolve()
    store = MediaStore(replace(settings, local_files_root=str(root)), None)
    source = FrameSource(tuple(MediaRef(path.resolve().as_uri()) for path in files), kind="volume")
    folder.mkdir(parents=True, exist_ok=True)
    prefix = prefix or _local_files_prefix(folder.resolve(), settings)
    names: list[str] = []
    with open_frames(source, store, settings) as frames:
        for frame_idx, image in frames.stream(0, frames.n_frames - 1, reverse=False):
            names.append(f"{frame_idx + 1:05d}.png")
            Image.fromarray(image[:, :, 0]).save(folder / names[-1])
    tasks = folder / TASKS_FILE
    tasks.write_text(json.dumps([{"data": {FIELD: [prefix + name for name in names], "volume": volume.name}}], indent=1))
    return tasks


def _files(volume: Path) -> Sequence[Path]:
    files = sorted(path for path in volume.iterdir() if path.is_file()) if volume.is_dir() else [volume]
    if not files or not files[0].is_file():
        raise VideoUnreadableError(f"{volume} is neither a file nor a folder with files. Name a volume, or the folder of a DICOM series.")
    return files


def _local_files_prefix(folder: Path, settings: Settings) -> str:
    root = Path(settings.local_files_root).resolve() if settings.local_files_root else folder.parent
    inside = folder.relative_to(root) if folder.is_relative_to(root) else Path(folder.name)
    return f"{LOCAL_FILES_PATH}/?d={quote(inside.as_posix())}/"
