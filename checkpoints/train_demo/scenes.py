"""One training picture: 1–6 objects over a background, with the camera's faults, and a map that says which pixel is whose."""

from dataclasses import dataclass

import cv2
import numpy as np

from checkpoints.train_demo.assets import Assets
from checkpoints.train_demo.backgrounds import Rng, background
from checkpoints.train_demo.objects import Layer, clip_art, shape

MAX_OBJECTS = 6
MIN_VISIBLE_SHARE = 0.0014  # of the picture: 92 px at 256
MIN_CONTRAST = 14.0  # grey levels between an object and what it covers; below, people could not see it either


@dataclass(frozen=True, slots=True)
class Scene:
    """`owner` is 0 for background, else 1 + the object's place; `is_shape` has one entry per object (True: a plain shape)."""

    image: np.ndarray  # (S, S, 3) uint8 RGB
    owner: np.ndarray  # (S, S) uint8
    is_shape: np.ndarray  # (MAX_OBJECTS,) bool


def render(assets: Assets, seed: int, index: int, *, side_px: int, shape_share: float = 0.5) -> Scene:
    """Scene INDEX of the endless series SEED: the same picture every time."""
    rng = np.random.default_rng((seed, index))
    while True:
        scene = _compose(rng, assets, side_px, shape_share)
        if scene.owner.any():
            return scene


def _compose(rng: Rng, assets: Assets, side_px: int, shape_share: float) -> Scene:
    canvas = background(rng, assets.photos, side_px)
    owner = np.zeros((side_px, side_px), np.uint8)
    is_shape = np.zeros(MAX_OBJECTS, bool)
    for place in range(int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.22, 0.24, 0.2, 0.14, 0.1, 0.1]))):
        is_shape[place] = rng.random() < shape_share
        color, alpha = shape(rng, assets.photos, side_px) if is_shape[place] else clip_art(rng, assets.cutouts, side_px)
        if is_visible(canvas, (color, alpha)):
            canvas += (color - canvas) * alpha[..., None]
            owner[alpha >= 0.5] = place + 1
    for place in range(MAX_OBJECTS):
        mine = owner == place + 1
        if 0 < int(mine.sum()) < MIN_VISIBLE_SHARE * owner.size:
            owner[mine] = 0
    return Scene(camera(rng, canvas), owner, is_shape)


def is_visible(canvas: np.ndarray, layer: Layer) -> bool:
    """Whether a layer on the canvas is large enough and differs enough from what it covers."""
    color, alpha = layer
    inside = alpha >= 0.5
    if int(inside.sum()) < MIN_VISIBLE_SHARE * inside.size:
        return False
    return float(np.abs(color[inside] - canvas[inside]).max(1).mean()) > MIN_CONTRAST


def camera(rng: Rng, canvas: np.ndarray) -> np.ndarray:
    """(S, S, 3) float32 -> uint8: light, blur, sensor noise and JPEG, each only sometimes."""
    if rng.random() < 0.3:
        canvas = (canvas - 127) * np.float32(rng.uniform(0.5, 1.2)) + 127 + np.float32(rng.normal(0, 20))
    if rng.random() < 0.25:
        canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.4, 1.5)))
    if rng.random() < 0.35:
        canvas = canvas + rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(1, 14))
    image: np.ndarray = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 92))])
        image = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return image
