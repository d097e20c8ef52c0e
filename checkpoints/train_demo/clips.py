"""Short clips of objects that move, turn, change size, cover one another, leave the picture and come back; and whose each pixel is."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from checkpoints.train_demo.assets import Assets
from checkpoints.train_demo.backgrounds import Rng, background
from checkpoints.train_demo.motion import Motion, away, direction, wandering
from checkpoints.train_demo.objects import Layer, centered, clip_art, cover, shape
from checkpoints.train_demo.scenes import MIN_VISIBLE_SHARE, camera, is_visible

#: What happens to the first object: nothing, something passes in front of it, or it leaves the picture for some frames.
Event = Literal["none", "covered", "gone"]

_BACKGROUND_MARGIN = 0.2  # what a moving camera can see beside the first frame, as a share of it
_COVER_RAMP, _LEAVE_RAMP = 3, 4  # frames
TOLERATED_FRAMES = 2
_CAMERA_STREAM = 7


@dataclass(frozen=True, slots=True)
class Clip:
    """`owner` is 0 for background, else 1 + the object's place; place 0 is the one that the event is about."""

    images: np.ndarray  # (T, S, S, 3) uint8 RGB
    owner: np.ndarray  # (T, S, S) uint8

    def visible(self, frame: int) -> np.ndarray:
        """The owners of enough pixels on a frame to be pointed at."""
        owners, pixels = np.unique(self.owner[frame], return_counts=True)
        return owners[(owners > 0) & (pixels >= MIN_VISIBLE_SHARE * self.owner[frame].size)]


@dataclass(frozen=True, slots=True)
class ClipSize:
    side_px: int
    frames: int


@dataclass(frozen=True, slots=True)
class _Thing:
    sprite: np.ndarray  # (S, S, 4) float32, colour times alpha, in the middle of the canvas
    motion: Motion


def render_clip(assets: Assets, seed: int, index: int, size: ClipSize, *, n_objects: int, event: Event, hidden_frames: int = 0) -> Clip:
    """Clip INDEX of the endless series SEED: the same pictures every time.

    With an event the first object cannot be seen at all in HIDDEN_FRAMES frames in the middle, and at most in TOLERATED_FRAMES others.
    """
    rng = np.random.default_rng((seed, index))
    while True:
        clip = _filmed(rng, assets, size, n_objects, event, hidden_frames)
        if clip is not None and _keeps_promise(clip, n_objects, 0 if event == "none" else hidden_frames):
            return clip


def _keeps_promise(clip: Clip, n_objects: int, hidden_frames: int) -> bool:
    if len(clip.visible(0)) < n_objects:
        return False
    pixels = (clip.owner == 1).sum((1, 2))
    n_hidden = int((pixels == 0).sum())
    is_back = not hidden_frames or pixels[-1] >= 0.5 * pixels[0]
    return bool(hidden_frames <= n_hidden <= hidden_frames + TOLERATED_FRAMES and is_back)


def _filmed(rng: Rng, assets: Assets, size: ClipSize, n_objects: int, event: Event, hidden_frames: int) -> Clip | None:
    """None where an object cannot be told from what is behind it."""
    scenery = _Scenery.of(rng, assets, size)
    things, canvas = [], scenery.frame(0).copy()
    for place in range(n_objects):
        half_px = 0.5 * size.side_px * np.exp(rng.uniform(np.log(0.2), np.log(0.55)))
        motion = wandering(rng, size.frames, size.side_px, half_px)
        layer = _drawn(rng, assets, size.side_px, half_px)
        thing = _Thing(_premultiplied(layer), motion)
        if not is_visible(canvas, _straight(_moved(thing, 0, size.side_px))):
            return None
        _paste(canvas, _moved(thing, 0, size.side_px))
        things.append(_with_event(rng, thing, size, event, hidden_frames) if place == 0 else thing)
    if event == "covered":
        things.append(_passing_cover(rng, assets, things[0], size, hidden_frames))
    return _shot(rng, scenery, things, size)


def _drawn(rng: Rng, assets: Assets, side_px: int, half_px: float) -> Layer:
    to_canvas = centered(rng, side_px, half_px)
    if rng.random() < 0.5:
        return shape(rng, assets.photos, side_px, to_canvas)
    return clip_art(rng, assets.cutouts, side_px, to_canvas)


def _first_hidden(size: ClipSize, hidden_frames: int) -> int:
    """The middle of the clip: what is hidden was seen before and is seen again."""
    return (size.frames - hidden_frames) // 2


def _with_event(rng: Rng, thing: _Thing, size: ClipSize, event: Event, hidden_frames: int) -> _Thing:
    if event != "gone":
        return thing
    is_there = away(size.frames, _first_hidden(size, hidden_frames), hidden_frames, _LEAVE_RAMP)
    return _Thing(thing.sprite, thing.motion.moved((1 - is_there)[:, None] * direction(rng) * 1.5 * size.side_px))


def _passing_cover(rng: Rng, assets: Assets, hidden: _Thing, size: ClipSize, hidden_frames: int) -> _Thing:
    """Comes from one side, stays over the thing for HIDDEN_FRAMES frames and goes to the other."""
    ys, xs = np.nonzero(hidden.sprite[..., 3] > 0)
    radius_px = float(np.hypot(xs - (size.side_px - 1) / 2, ys - (size.side_px - 1) / 2).max())
    first = _first_hidden(size, hidden_frames)
    side = np.where(np.arange(size.frames) < first + hidden_frames / 2, -1.0, 1.0)
    path_px = (side * away(size.frames, first, hidden_frames, _COVER_RAMP))[:, None] * direction(rng) * 3.2 * radius_px
    still = Motion(hidden.motion.center_px, np.zeros(size.frames), np.ones(size.frames))
    return _Thing(_premultiplied(cover(rng, assets.photos, size.side_px, radius_px)), still.moved(path_px))


def _shot(rng: Rng, scenery: "_Scenery", things: list[_Thing], size: ClipSize) -> Clip:
    """One camera, whose faults stay, and a little noise that does not."""
    camera_seed, grain = int(rng.integers(2**31)), np.float32(rng.uniform(0, 4))
    images, owners = [], []
    for frame in range(size.frames):
        canvas, owner = scenery.frame(frame).copy(), np.zeros((size.side_px, size.side_px), np.uint8)
        for place, thing in enumerate(things):
            layer = _moved(thing, frame, size.side_px)
            _paste(canvas, layer)
            owner[layer[..., 3] >= 0.5] = place + 1
        canvas += rng.standard_normal(canvas.shape, np.float32) * grain
        images.append(camera(np.random.default_rng((camera_seed, _CAMERA_STREAM)), canvas))
        owners.append(owner)
    return Clip(np.stack(images), np.stack(owners))


def _premultiplied(layer: Layer) -> np.ndarray:
    color, alpha = layer
    return np.dstack([color * alpha[..., None], alpha]).astype(np.float32)


def _straight(rgba: np.ndarray) -> Layer:
    return rgba[..., :3] / np.maximum(rgba[..., 3:], 0.02), rgba[..., 3]


def _moved(thing: _Thing, frame: int, side_px: int) -> np.ndarray:
    return cv2.warpAffine(thing.sprite, thing.motion.to_canvas(frame, side_px), (side_px, side_px), flags=cv2.INTER_LINEAR)


def _paste(canvas: np.ndarray, rgba: np.ndarray) -> None:
    canvas *= 1 - rgba[..., 3:]
    canvas += rgba[..., :3]


@dataclass(frozen=True, slots=True)
class _Scenery:
    """A background larger than the picture, and where the camera looks at it."""

    picture: np.ndarray
    corner_px: np.ndarray  # (T, 2) x, y
    side_px: int

    @classmethod
    def of(cls, rng: Rng, assets: Assets, size: ClipSize) -> "_Scenery":
        margin_px = round(_BACKGROUND_MARGIN * size.side_px)
        picture = background(rng, assets.photos, size.side_px + margin_px)
        swing = wandering(rng, size.frames, margin_px, 0.0).center_px if rng.random() < 0.4 else np.zeros((size.frames, 2))
        return cls(picture, np.clip(np.round(swing), 0, margin_px).astype(int), size.side_px)

    def frame(self, index: int) -> np.ndarray:
        x, y = self.corner_px[index]
        return self.picture[y : y + self.side_px, x : x + self.side_px]
