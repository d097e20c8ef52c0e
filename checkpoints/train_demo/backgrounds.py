"""What objects are pasted on: flat colours, gradients, noise, stripes and crops of photographs. (S, S, 3) float32 in 0..255."""

import cv2
import numpy as np

Rng = np.random.Generator

KINDS = ("flat", "gradient", "noise", "pattern", "photo")
WEIGHTS = (0.27, 0.13, 0.13, 0.09, 0.38)


def random_color(rng: Rng) -> np.ndarray:
    """(3,) float32; one in four is near grey, as paper, walls and roads are."""
    color = rng.uniform(0, 255, 3)
    if rng.random() < 0.25:
        color = color.mean() + rng.normal(0, 8, 3)
    return np.clip(color, 0, 255).astype(np.float32)


def flat(rng: Rng, side_px: int) -> np.ndarray:
    return np.broadcast_to(random_color(rng), (side_px, side_px, 3)).copy()


def gradient(rng: Rng, side_px: int) -> np.ndarray:
    """Two to nine random colours blended over the whole picture."""
    corners_hw = rng.integers(1, 4, 2)
    corners_hw[rng.integers(2)] = max(2, corners_hw.max())
    coarse = np.stack([random_color(rng) for _ in range(corners_hw.prod())]).reshape(*corners_hw, 3)
    if rng.random() < 0.5:
        coarse = coarse.mean((0, 1)) + 0.4 * (coarse - coarse.mean((0, 1)))
    return cv2.resize(coarse.astype(np.float32), (side_px, side_px), interpolation=cv2.INTER_LINEAR)


def noise(rng: Rng, side_px: int) -> np.ndarray:
    """Noise of one to five grains, coarse and fine, around a colour."""
    out = flat(rng, side_px)
    grey = rng.random() < 0.4
    for _ in range(rng.integers(1, 3)):
        grain_px = int(rng.choice([1, 1, 2, 4, 8, 20, 50]))
        n = max(2, side_px // grain_px)
        layer = rng.standard_normal((n, n, 1 if grey else 3), np.float32) * np.float32(rng.uniform(8, 70))
        out += cv2.resize(layer, (side_px, side_px), interpolation=cv2.INTER_CUBIC).reshape(side_px, side_px, -1)
    return np.clip(out, 0, 255)


def pattern(rng: Rng, side_px: int) -> np.ndarray:
    """Stripes or checks of two colours at any angle, sharp or soft."""
    a, b = random_color(rng), random_color(rng)
    b = a + (b - a) * np.float32(rng.uniform(0.2, 1))
    angle, period_px = rng.uniform(0, np.pi), rng.uniform(6, 60)
    ys, xs = np.mgrid[:side_px, :side_px].astype(np.float32)
    wave = np.sin((xs * np.cos(angle) + ys * np.sin(angle)) * (2 * np.pi / period_px))
    if rng.random() < 0.5:
        wave = wave * np.sin((ys * np.cos(angle) - xs * np.sin(angle)) * (2 * np.pi / period_px))
    mix = np.clip(wave * rng.choice([1.0, 6.0]) * 0.5 + 0.5, 0, 1)[..., None]
    return (a + (b - a) * mix).astype(np.float32)


def photo_crop(rng: Rng, photos: list[np.ndarray], side_px: int) -> np.ndarray:
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[:2]
    crop = int(rng.uniform(0.35, 1.0) * min(height, width))
    y, x = rng.integers(0, height - crop + 1), rng.integers(0, width - crop + 1)
    out = cv2.resize(photo[y : y + crop, x : x + crop], (side_px, side_px), interpolation=cv2.INTER_AREA).astype(np.float32)
    if rng.random() < 0.5:
        out = out[:, ::-1]
    if rng.random() < 0.3:
        out = out[..., rng.permutation(3)]
    if rng.random() < 0.3:
        out = 255 - out
    return np.ascontiguousarray(out)


def background(rng: Rng, photos: list[np.ndarray], side_px: int) -> np.ndarray:
    kind = rng.choice(KINDS, p=WEIGHTS)
    if kind == "photo":
        return photo_crop(rng, photos, side_px)
    made = {"flat": flat, "gradient": gradient, "noise": noise, "pattern": pattern}[kind](rng, side_px)
    return made.astype(np.float32)
