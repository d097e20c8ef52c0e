"""The raw material, shrunk once and cached: cut-outs with alpha and background photographs, each in a training and a held-out half."""

import argparse
import hashlib
import io
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

Split = Literal["train", "held_out"]

CUTOUT_SIDE_PX = 160
PHOTO_SHORT_SIDE_PX = 400
MAX_PER_FOLDER = 160  # "computer/icons" and "shapes/stars" alone are 40 % of the collection
HELD_OUT_PERCENT = 10
MAX_FILE_BYTES = 300_000  # posters of 600 million pixels are among them
MAX_PIXELS = 4_000_000
SKIPPED_FOLDERS = ("special/patterns", "special/gradients", "shapes/jigsaw", "signs_and_symbols/led", "computer/buttons")
#: Photographs shipped in the wheels of scikit-image and scikit-learn; documents and drawings in there are left out.
PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg",
    "ihc.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg", "china.jpg", "flower.jpg", "cell.png",
)  # fmt: skip
HELD_OUT_PHOTOS = ("coffee.png", "gravel.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg")


@dataclass(frozen=True, slots=True)
class Assets:
    """Cut-outs as (h, w, 4) uint8 RGBA with straight alpha, photographs as (h, w, 3) uint8 RGB."""

    cutouts: list[np.ndarray]
    photos: list[np.ndarray]


class MissingAssetsError(Exception):
    """The raw material is not there; the message says how to get it."""


def load_assets(work: Path, split: Split) -> Assets:
    """What `main` cached in WORK for one split; raises MissingAssetsError where it did not run."""
    if not (work / f"photos-{split}.npz").exists():
        raise MissingAssetsError(
            f"There are no drawings and photographs in {work}. Install Debian's openclipart-png (apt-get install openclipart-png), "
            "get two wheels (pip download --no-deps -d WHEELS scikit-image==0.26.0 scikit-learn==1.9.1), then make the folder: "
            f"python -m checkpoints.train_demo.assets --wheels WHEELS --work {work}"
        )
    return Assets(_unpack(work / f"cutouts-{split}.npz"), _unpack(work / f"photos-{split}.npz"))


def is_held_out(name: str) -> bool:
    """Decided by the first word of the file name, so that variants of one drawing stay on one side."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest) % 100 < HELD_OUT_PERCENT


def _pack(path: Path, images: list[np.ndarray]) -> None:
    shapes = np.array([image.shape for image in images], np.int32)
    np.savez(path, shapes=shapes, pixels=np.concatenate([image.reshape(-1) for image in images]))


def _unpack(path: Path) -> list[np.ndarray]:
    with np.load(path) as stored:
        shapes, pixels = stored["shapes"], stored["pixels"]
    ends = np.cumsum(shapes.prod(1, dtype=np.int64))
    return [part.reshape(shape) for part, shape in zip(np.split(pixels, ends[:-1]), shapes, strict=True)]


def _one_object(alpha: np.ndarray) -> bool:
    """Whether the drawing is one connected thing that fills some of its box: letters and confetti teach nothing about objects."""
    solid = (alpha > 127).astype(np.uint8)
    area = int(solid.sum())
    if area < 0.12 * solid.size or area < 400:
        return False
    _, _, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    return bool(stats[1:, cv2.CC_STAT_AREA].max() > 0.85 * area)


def _shrunk_cutout(path: Path) -> np.ndarray | None:
    with Image.open(path) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            return None
        rgba = np.asarray(opened.convert("RGBA"))
    ys, xs = np.nonzero(rgba[..., 3] > 16)
    if len(ys) == 0:
        return None
    rgba = rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    scale = min(1.0, CUTOUT_SIDE_PX / max(rgba.shape[:2]))
    size_wh = (max(8, round(rgba.shape[1] * scale)), max(8, round(rgba.shape[0] * scale)))
    small = cv2.resize(rgba, size_wh, interpolation=cv2.INTER_AREA)
    small[..., :3] /= np.maximum(small[..., 3:] / 255, 1e-3)
    shrunk = np.clip(small + 0.5, 0, 255).astype(np.uint8)
    return shrunk if _one_object(shrunk[..., 3]) else None


def collect_cutouts(root: Path) -> dict[Split, list[np.ndarray]]:
    """Every usable drawing under ROOT, at most MAX_PER_FOLDER from one folder, no file twice."""
    if not root.is_dir():
        raise MissingAssetsError(f"There are no drawings in {root}. Install them (apt-get install openclipart-png), or name their folder.")
    found: dict[Split, list[np.ndarray]] = {"train": [], "held_out": []}
    per_folder: Counter[str] = Counter()
    seen: set[bytes] = set()
    paths = sorted(root.rglob("*.png"), key=lambda path: hashlib.blake2b(path.name.encode()).digest())
    for path in paths:
        if path.stat().st_size > MAX_FILE_BYTES:
            continue
        folder = "/".join(path.relative_to(root).parts[:2])
        digest = hashlib.blake2b(path.read_bytes()).digest()
        if folder in SKIPPED_FOLDERS or per_folder[folder] >= MAX_PER_FOLDER or digest in seen:
            continue
        seen.add(digest)
        shrunk = _shrunk_cutout(path)
        if shrunk is None:
            continue
        per_folder[folder] += 1
        first_word = path.stem.lower().split("_")[0].split("-")[0]
        found["held_out" if is_held_out(f"{folder}/{first_word}") else "train"].append(shrunk)
    return found


def collect_photos(wheels: Path) -> dict[Split, list[np.ndarray]]:
    found: dict[Split, list[np.ndarray]] = {"train": [], "held_out": []}
    for wheel in sorted(wheels.glob("scikit_*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                name = entry.rsplit("/", 1)[-1]
                if name not in PHOTOS or ("/data/" not in entry and "/images/" not in entry):
                    continue
                rgb = np.asarray(Image.open(io.BytesIO(archive.read(entry))).convert("RGB"))
                scale = PHOTO_SHORT_SIDE_PX / min(rgb.shape[:2])
                size_wh = (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale))
                found["held_out" if name in HELD_OUT_PHOTOS else "train"].append(cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clipart", type=Path, default=Path("/usr/share/openclipart/png"))
    parser.add_argument("--wheels", type=Path, required=True, help="folder with the wheels of scikit-image and scikit-learn")
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for kind, halves in (("cutouts", collect_cutouts(arguments.clipart)), ("photos", collect_photos(arguments.wheels))):
        for split, images in halves.items():
            _pack(arguments.work / f"{kind}-{split}.npz", images)
            print(f"{kind} {split}: {len(images)}")


if __name__ == "__main__":
    main()
