"""What crosses the queue for videos and image sequences, beside `messages`. Standard library only; the same codec.

A video is addressed by places on a grid: `grid_idx` g is what a viewer shows at g / framerate seconds, the frame with the greatest
timestamp at or before it. For an image sequence the grid is the pages. Coordinates of keyframes are pixels of the job's `size_hw`; (1, 1)
makes them shares of the frame, for video files, whose size the web tier does not know. Boxes in replies are always shares, 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sam2_backend.messages import ImagePrompt, MaskOptions, MediaRef, RunLengths

Direction = Literal["forward", "backward", "both"]
PropagationPhase = Literal["waiting", "running", "done", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class FrameSource:
    """Where frames come from.

    Attributes:
        media: One video file or medical volume, or the pages of an image sequence in order.
        kind: `video`, `volume` or `pages`.
        framerate: Of the grid, frames per second; pages and volumes: 1.
        n_frames: Length of the grid; 0: to the end of the file.
    """

    media: tuple[MediaRef, ...]
    kind: Literal["video", "volume", "pages"]
    framerate: float = 1.0
    n_frames: int = 0


@dataclass(frozen=True, slots=True)
class Keyframe:
    """What a person said of one object on one frame.

    Attributes:
        object_id: The region's id; names the object in the reply.
        grid_idx: Where on the grid.
        prompt: Its box, points or mask; its `prompt_id` equals `object_id`. None: the person said that the object is not there, from
            this frame on, until its next keyframe.
    """

    object_id: str
    grid_idx: int
    prompt: ImagePrompt | None


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """What a project asks of a propagation.

    Attributes:
        direction: From the keyframes onwards, back to the start, or both.
        first_grid_idx, last_grid_idx: Range to fill, both included; -1 as last: to the end.
        between_only: Fill only what lies between neighbouring keyframes and the ends; see `propagation` for what a correction changes.
        non_overlap: Each pixel belongs to the object that is surest of it.
        mask: Holes, sprinkles and threshold of every mask.
        wants_masks: Keep the masks, not only boxes.
    """

    direction: Direction = "both"
    first_grid_idx: int = 0
    last_grid_idx: int = -1
    between_only: bool = False
    non_overlap: bool = False
    mask: MaskOptions = MaskOptions()
    wants_masks: bool = False


@dataclass(frozen=True, slots=True)
class PropagateJob:
    """Fill a video from its keyframes.

    Attributes:
        session: Names this work and its results: `session_of` the rest, so that asking again finds what is done. Nothing a client chose.
        title: For people: "project 3 task 17".
    """

    session: str
    source: FrameSource
    size_hw: tuple[int, int]
    keyframes: tuple[Keyframe, ...]
    options: VideoOptions = VideoOptions()
    title: str = ""


@dataclass(frozen=True, slots=True)
class Track:
    """One object over the frames that are done, packed.

    Attributes:
        grid_idx: int32 little-endian, (n,), ascending.
        boxes: float32 little-endian, (n, 4): left, top, right, bottom as shares; four NaN where the object is not seen.
        scores: float32 little-endian, (n,), 0 to 1.
    """

    object_id: str
    grid_idx: bytes = b""
    boxes: bytes = b""
    scores: bytes = b""


@dataclass(frozen=True, slots=True)
class PropagationState:
    """How far a propagation is.

    Attributes:
        n_frames, n_done: Object-frames to fill, and filled.
        size_hw: Of the video as shown; (0, 0) until known.
        tracks: In the order of first appearance in the keyframes.
        error: `code: message` where the phase is `failed`.
        started_at, updated_at: Unix seconds.
    """

    session: str
    phase: PropagationPhase
    title: str = ""
    n_frames: int = 0
    n_done: int = 0
    size_hw: tuple[int, int] = (0, 0)
    tracks: tuple[Track, ...] = ()
    model_version: str = ""
    worker: str = ""
    error: str = ""
    started_at: float = 0.0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True)
class FrameMask:
    """The mask of one object on one frame, at the size of the video."""

    object_id: str
    grid_idx: int
    runs: RunLengths
    score: float
