"""Masklets on disk: one file per task (which makes an export resumable), indexed PNGs in DAVIS's layout, and COCO's two kinds of JSON.

A frame's number in every file is Label Studio's less one. Everything is written beside its place and renamed, so what is there is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.coco_rle import CocoRle, mask_of
from sam2_backend.errors import Sam2BackendError

MOST_OBJECTS = 255
"""An indexed PNG has as many values beside the background."""


class ExportError(Sam2BackendError):
    """Something cannot be exported."""

    code = "export_failed"


@dataclass(slots=True)
class Masklet:
    """One object of one video.

    Attributes:
        label: Empty: it has none.
        masks: By frame from 0; frames without the object are absent.
        boxes: x, y, width, height in pixels, for the same frames.
    """

    region_id: str
    label: str
    masks: dict[int, CocoRle] = field(default_factory=dict)
    boxes: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    areas: dict[int, int] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class VideoMasklets:
    """Every object of one task's video.

    Attributes:
        name: Of its folder of PNGs.
        made_from: Digest of all that the masks depend on.
        uri: As the task has it.
    """

    task_id: int
    name: str
    made_from: str
    uri: str
    framerate: float
    size_hw: tuple[int, int]
    n_frames: int
    masklets: list[Masklet] = field(default_factory=list)


class ExportFolder:
    """The folder that an export writes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        try:
            (root / "masklets").mkdir(parents=True, exist_ok=True)
            (root / "Annotations").mkdir(exist_ok=True)
        except OSError as error:
            raise ExportError(f"{root} cannot be written to ({error.strerror}). Choose another folder with --to.") from error

    def has(self, task_id: int, made_from: str) -> bool:
        """Whether a task was exported before from exactly this."""
        video = self._read(self._part(task_id))
        return video is not None and video.made_from == made_from and (self._root / "Annotations" / video.name).is_dir()

    def write(self, video: VideoMasklets) -> None:
        """Write a task's PNGs, then its masklets."""
        if len(video.masklets) > MOST_OBJECTS:
            raise ExportError(
                f"Task {video.task_id} has {len(video.masklets)} objects; an indexed PNG holds {MOST_OBJECTS}. Split the task."
            )
        folder = self._root / "Annotations" / video.name
        fresh = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        for frame in range(video.n_frames):
            indexed_png(video, frame).save(fresh / f"{frame:05d}.png")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        _write_json(self._part(video.task_id), asdict(video))

    def forget_others(self, task_ids: Sequence[int]) -> None:
        """Remove what earlier exports wrote of tasks that are no longer there."""
        for path in (self._root / "masklets").glob("*.json"):
            video = self._read(path)
            if video is None or video.task_id not in task_ids:
                path.unlink(missing_ok=True)
                if video is not None:
                    shutil.rmtree(self._root / "Annotations" / video.name, ignore_errors=True)

    def summarize(self) -> tuple[int, int]:
        """Write `youtube_vis.json` and `coco.json` of all tasks that are there. Returns how many videos and objects."""
        videos = sorted(filter(None, map(self._read, (self._root / "masklets").glob("*.json"))), key=lambda video: video.task_id)
        names = sorted({masklet.label for video in videos for masklet in video.masklets})
        categories = {name: number for number, name in enumerate(names, start=1)}
        _write_json(self._root / "youtube_vis.json", youtube_vis(videos, categories))
        _write_json(self._root / "coco.json", coco(videos, categories))
        return len(videos), sum(len(video.masklets) for video in videos)

    def _part(self, task_id: int) -> Path:
        return self._root / "masklets" / f"{task_id}.json"

    @staticmethod
    def _read(path: Path) -> VideoMasklets | None:
        """None: not there, or of another version."""
        try:
            value = json.loads(path.read_text())
            masklets = [_masklet(item) for item in value.pop("masklets")]
            return VideoMasklets(**value | {"masklets": masklets, "size_hw": tuple(value["size_hw"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def indexed_png(video: VideoMasklets, frame: int) -> Image.Image:
    """One frame as DAVIS has it: the pixel's value is the object's place in the list from 1, 0 the background; later objects on top."""
    canvas: NDArray[np.uint8] = np.zeros(video.size_hw, np.uint8)
    for number, masklet in enumerate(video.masklets, start=1):
        if frame in masklet.masks:
            canvas[mask_of(masklet.masks[frame])] = number
    image = Image.frombytes("P", video.size_hw[::-1], canvas.tobytes())
    image.putpalette(palette())
    return image


def palette() -> bytes:
    """The colours of PASCAL VOC and DAVIS: the bits of an index, spread over red, green and blue."""
    colours = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()


def youtube_vis(videos: Sequence[VideoMasklets], categories: dict[str, int]) -> dict[str, Any]:
    """YouTube-VIS: an annotation is an object, with a mask or null for every frame."""
    annotations = [
        {
            "id": number,
            "video_id": video.task_id,
            "category_id": categories[masklet.label],
            "iscrowd": 0,
            "region_id": masklet.region_id,
            "width": video.size_hw[1],
            "height": video.size_hw[0],
            "length": video.n_frames,
            "segmentations": [masklet.masks.get(frame) for frame in range(video.n_frames)],
            "bboxes": [masklet.boxes.get(frame) for frame in range(video.n_frames)],
            "areas": [masklet.areas.get(frame) for frame in range(video.n_frames)],
        }
        for number, (video, masklet) in enumerate(_all(videos), start=1)
    ]
    shown = [_video(video) for video in videos]
    return {"info": _INFO, "licenses": [], "videos": shown, "categories": _categories(categories), "annotations": annotations}


def coco(videos: Sequence[VideoMasklets], categories: dict[str, int]) -> dict[str, Any]:
    """COCO: an image is a frame, an annotation is an object on it; `track_id` is its number in YouTube-VIS's file."""
    image_ids: dict[tuple[int, int], int] = {}
    images: list[dict[str, Any]] = []
    for video in videos:
        for frame, name in enumerate(_video(video)["file_names"]):
            image_ids[video.task_id, frame] = len(images) + 1
            size = {"width": video.size_hw[1], "height": video.size_hw[0]}
            images.append({"id": len(images) + 1, "file_name": name, "video_id": video.task_id, "frame_id": frame} | size)
    annotations = [
        {
            "id": number,
            "image_id": image_ids[video.task_id, frame],
            "category_id": categories[masklet.label],
            "track_id": track,
            "iscrowd": 0,
            "segmentation": masklet.masks[frame],
            "bbox": masklet.boxes[frame],
            "area": masklet.areas[frame],
            "score": masklet.scores[frame],
        }
        for number, (track, video, masklet, frame) in enumerate(_all_frames(videos), start=1)
    ]
    return {"info": _INFO, "licenses": [], "images": images, "categories": _categories(categories), "annotations": annotations}


_INFO = {"description": "Masklets by SAM 2 for Label Studio", "version": "1"}


def _all(videos: Sequence[VideoMasklets]) -> Iterator[tuple[VideoMasklets, Masklet]]:
    yield from ((video, masklet) for video in videos for masklet in video.masklets)


def _all_frames(videos: Sequence[VideoMasklets]) -> Iterator[tuple[int, VideoMasklets, Masklet, int]]:
    for track, (video, masklet) in enumerate(_all(videos), start=1):
        yield from ((track, video, masklet, frame) for frame in sorted(masklet.masks))


def _video(video: VideoMasklets) -> dict[str, Any]:
    return {
        "id": video.task_id,
        "width": video.size_hw[1],
        "height": video.size_hw[0],
        "length": video.n_frames,
        "framerate": video.framerate,
        "uri": video.uri,
        "file_names": [f"{video.name}/{frame:05d}.jpg" for frame in range(video.n_frames)],
    }


def _categories(categories: dict[str, int]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name or "unlabelled", "supercategory": ""} for name, number in categories.items()]


def _masklet(value: dict[str, Any]) -> Masklet:
    """JSON's keys are text."""
    by_frame = {name: {int(frame): item for frame, item in value[name].items()} for name in ("masks", "boxes", "areas", "scores")}
    return Masklet(value["region_id"], value["label"], **by_frame)


def _write_json(path: Path, value: Any) -> None:
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_text(json.dumps(value))
    fresh.replace(path)
