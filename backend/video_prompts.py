"""Context regions on a video (`VideoRectangle`) → what a person drew of each object, as prompts on a grid of frames.

Every box on a keyframe that a person drew or changed is a prompt; keyframes of our own are not (`keyframes`). Label Studio numbers frames by
its labeling config's `framerate`, whatever the file's is, so the grid of the propagation is that one. The size of the video is not known
here: boxes are shares of the frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend import prompt_regions
from backend.keyframes import MOST_FRAMES, SequenceKeyframe, one_per_frame, read_keyframe
from backend.label_config import LabelConfig, ObjectTag
from backend.task_media import field_value
from sam2_backend.errors import PromptError, TaskDataError, VideoFramerateError
from sam2_backend.messages import ImagePrompt
from sam2_backend.video_messages import Keyframe

TYPE = "videorectangle"

DEFAULT_FRAMERATE = 24.0
"""Label Studio's, where the labeling config has none that is a number."""

FASTEST = 1000.0
LONGEST_S = 7 * 24 * 3600.0
LEAST_SIDE = 1e-4
"""Of the frame: smaller boxes are slips of the mouse."""

_ROUNDING_FRAMES = 1.5


@dataclass(frozen=True, slots=True)
class VideoObject:
    """One region: an object and its keyframes, one per frame, ascending."""

    object_id: str
    region: Mapping[str, Any]
    keyframes: tuple[SequenceKeyframe, ...]

    @property
    def drawn(self) -> tuple[SequenceKeyframe, ...]:
        """A person's keyframes."""
        return tuple(keyframe for keyframe in self.keyframes if not keyframe.is_ours)


@dataclass(frozen=True, slots=True)
class VideoDrawing:
    """Everything drawn on one video.

    Attributes:
        objects: In the order of the context.
        from_name: The control tag of the first region: its options hold.
        framerate: Of the grid, frames per second.
        n_frames: Length of the grid; 0: not known.
        keyframes: The prompts, by object and frame; empty: nobody has drawn anything that is on the video.
    """

    to_name: str
    from_name: str
    objects: tuple[VideoObject, ...]
    framerate: float
    n_frames: int
    keyframes: tuple[Keyframe, ...]


def is_on_video(entry: Any, config: LabelConfig) -> bool:
    """Whether an entry of a context is a region on a video."""
    if not isinstance(entry, Mapping):
        return False
    return str(entry.get("type")).lower().startswith("video") or any(tag.name == entry.get("to_name") for tag in config.videos)


def video_drawings(
    entries: Sequence[Mapping[str, Any]], config: LabelConfig, task: Mapping[str, Any], most_objects: int
) -> list[VideoDrawing]:
    """Read the regions of a context that are on videos.

    Args:
        entries: `videorectangle` regions; others are passed over.
        task: Its data is read for `framerate="$field"`.
        most_objects: Most objects at a time.

    Returns:
        One drawing per video tag, in order of appearance.

    Raises:
        PromptError: a region is malformed, a box is turned or has no size, or there are too many objects.
        VideoFramerateError: the frames cannot be numbered.
    """
    by_tag: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        if str(entry.get("type")).lower() == TYPE:
            by_tag.setdefault(_video_tag(entry, config).name, []).append(entry)
    drawings = [_drawing(config.object_tag(name), regions, task) for name, regions in by_tag.items()]
    n_objects = sum(len(drawing.objects) for drawing in drawings)
    if n_objects > most_objects:
        raise PromptError(f"{n_objects} objects at a time are more than {most_objects} can be tracked. Give some of them another label.")
    return drawings


def framerate(tag: ObjectTag, task: Mapping[str, Any], value: Mapping[str, Any]) -> tuple[float, int]:
    """What numbers the frames of a region: frames per second, and how many there are (0: not known).

    The editor reads the labeling config, and 24 where that is no number. A region that says otherwise of itself (framesCount / duration)
    was made under another configuration, and its own numbers hold.

    Raises:
        PromptError: framesCount or duration is no number, or absurd.
        VideoFramerateError: the framerate is absurd.
    """
    configured = _configured_framerate(tag, task)
    n_frames, duration_s = _own_length(value)
    rate = configured
    if n_frames and duration_s and abs(n_frames - duration_s * configured) > _ROUNDING_FRAMES:
        rate = n_frames / duration_s
    if not 1 / FASTEST <= rate <= FASTEST:
        raise VideoFramerateError(
            f"{rate:g} frames per second cannot be. Correct framerate on <{tag.tag} name={tag.name!r}> in the labeling config."
        )
    return rate, n_frames if duration_s else 0


def _configured_framerate(tag: ObjectTag, task: Mapping[str, Any]) -> float:
    text: Any = tag.attributes.get("framerate", "")
    if text.strip().startswith("$"):
        try:
            text = field_value(task, text.strip()[1:], tag)
        except TaskDataError:
            text = ""
    try:
        rate = float(text)
    except (TypeError, ValueError):
        return DEFAULT_FRAMERATE
    if not math.isfinite(rate) or rate <= 0:
        return DEFAULT_FRAMERATE
    return 1 / rate if rate < 1 else rate  # as the editor: less than 1 is taken for seconds per frame


def _own_length(value: Mapping[str, Any]) -> tuple[int, float]:
    """What the region says of its video, frames and seconds; 0 where missing. While the video is not loaded, the editor writes 1 and 0."""
    count, duration = value.get("framesCount"), value.get("duration")
    n_frames = 0.0 if count is None else prompt_regions.number(count, "value.framesCount")
    duration_s = 0.0 if duration is None else prompt_regions.number(duration, "value.duration")
    if not (0 <= n_frames <= MOST_FRAMES and n_frames.is_integer()):
        raise PromptError(f"value.framesCount is {n_frames:g}: a video has up to {MOST_FRAMES} frames. Reload the task.")
    if not 0 <= duration_s <= LONGEST_S:
        raise PromptError(f"value.duration is {duration_s:g} s: a video lasts up to {LONGEST_S:.0f} s. Reload the task.")
    return int(n_frames), duration_s


def _video_tag(entry: Mapping[str, Any], config: LabelConfig) -> ObjectTag:
    name = entry.get("to_name")
    tags = [tag for tag in config.videos if tag.name == name or not name]
    if not tags:
        raise PromptError(f"A region is on the video {str(name)[:60]!r}, which the labeling config does not have. Reload the page.")
    return tags[0]


def _drawing(tag: ObjectTag, entries: Sequence[Mapping[str, Any]], task: Mapping[str, Any]) -> VideoDrawing:
    rate, n_frames = framerate(tag, task, _value(entries[0]))
    objects = _objects(entries)
    keyframes = tuple(keyframe for drawn in objects for keyframe in prompts(drawn, n_frames))
    return VideoDrawing(tag.name, str(entries[0].get("from_name") or ""), objects, rate, n_frames, keyframes)


def _objects(entries: Iterable[Mapping[str, Any]]) -> tuple[VideoObject, ...]:
    objects: dict[str, VideoObject] = {}
    for entry in entries:
        try:
            object_id = prompt_regions.region_id(entry)
            sequence = _value(entry).get("sequence")
            if not isinstance(sequence, list) or not sequence:
                raise PromptError("value.sequence must be a list of at least one keyframe.")
            keyframes = one_per_frame(read_keyframe(item) for item in sequence)
        except PromptError as error:
            raise PromptError(f"{prompt_regions.named(entry)}: {error.message}") from error
        objects.setdefault(object_id, VideoObject(object_id, entry, keyframes))
    return tuple(objects.values())


def _value(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    value = entry.get("value")
    if not isinstance(value, Mapping):
        raise PromptError(f"{prompt_regions.named(entry)}: it has no value. Send the region as Label Studio's editor does.")
    return value


def prompts(drawn: VideoObject, n_frames: int) -> Iterator[Keyframe]:
    """A box for every keyframe of a person's that is on the video, and "not there" after each that ends the object's lifespan."""
    keyframes = [keyframe for keyframe in drawn.drawn if not n_frames or keyframe.ls_frame <= n_frames]
    frames = {keyframe.ls_frame for keyframe in keyframes}
    for keyframe in keyframes:
        grid_idx = keyframe.ls_frame - 1
        box = _box(drawn, keyframe)
        yield Keyframe(drawn.object_id, grid_idx, ImagePrompt(drawn.object_id, box_xyxy_px=box) if box else None)
        ends = not keyframe.is_enabled and keyframe.ls_frame + 1 not in frames and (not n_frames or keyframe.ls_frame < n_frames)
        if ends and box:
            yield Keyframe(drawn.object_id, grid_idx + 1, None)


def _box(drawn: VideoObject, keyframe: SequenceKeyframe) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom as shares, cut to the frame; None: all of it lies outside, so the object is not in the picture."""
    x, y, width, height = (side / 100 for side in keyframe.box_xywh_pct)
    where = f"{prompt_regions.named(drawn.region)} on frame {keyframe.ls_frame}"
    if keyframe.rotation_deg:
        raise PromptError(f"{where}: its box is turned. Only upright boxes are tracked: turn it back.")
    if width < LEAST_SIDE or height < LEAST_SIDE:
        raise PromptError(f"{where}: its box has no size. Draw it again, larger.")
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + width, 1.0), min(y + height, 1.0)
    return (left, top, right, bottom) if right - left >= LEAST_SIDE and bottom - top >= LEAST_SIDE else None
