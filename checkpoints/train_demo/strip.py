"""Draw what the tracker follows: held-out clips, and videos whose objects are boxed on the first frame; some frames of each in a row."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from PIL import Image

from checkpoints.train_demo.assets import load_assets
from checkpoints.train_demo.batches import normalised
from checkpoints.train_demo.evaluate import load_network
from checkpoints.train_demo.evaluate_video import N_OBJECTS, followed, held_out_clips
from checkpoints.train_demo.sheet import COLORS
from sam2_backend.network import Sam2Network
from sam2_backend.network.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT
from sam2_backend.tracker import Tracker, TrackerPrompt

TILE_HEIGHT_PX, WIDTH_PX, GAP_PX = 120, 1000, 4
TINTS = np.array([(20, 60, 255), (255, 120, 0)])
CLIPS = 3  # of each kind, the first ones, none chosen by its result
#: Boxes as shares of width and height on the first frame, and how many frames are followed, every one of them.
VIDEOS: dict[str, tuple[tuple[tuple[float, float, float, float], ...], int]] = {
    "cups.mp4": (((0.445, 0.40, 0.58, 0.76), (0.645, 0.40, 0.785, 0.76)), 57),
    "dog.mp4": (((0.35, 0.52, 0.555, 0.77),), 57),
    "bedroom.mp4": (((0.32, 0.02, 0.54, 0.74),), 57),
}

Frame = tuple[np.ndarray, np.ndarray]  # (H, W, 3) uint8, (objects, H, W) bool


def tile(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    drawn = image.astype(float)
    for mask, tint in zip(masks, TINTS, strict=False):
        drawn = np.where(mask[..., None], drawn * 0.4 + tint * 0.6, drawn)
    size_wh = (round(TILE_HEIGHT_PX * image.shape[1] / image.shape[0]), TILE_HEIGHT_PX)
    return cv2.resize(drawn.astype(np.uint8), size_wh, interpolation=cv2.INTER_AREA)


def row(frames: Sequence[Frame]) -> np.ndarray:
    """As many of the frames as fit side by side, the first and the last among them."""
    n_tiles = WIDTH_PX // (tile(*frames[0]).shape[1] + GAP_PX)
    chosen = np.linspace(0, len(frames) - 1, n_tiles).round().astype(int)
    gap = np.full((TILE_HEIGHT_PX, GAP_PX, 3), 255, np.uint8)
    drawn = np.concatenate([part for i in chosen for part in (tile(*frames[i]), gap)], 1)
    return np.pad(drawn, ((0, GAP_PX), (0, WIDTH_PX - drawn.shape[1]), (0, 0)), constant_values=255)


@torch.inference_mode()
def followed_video(network: Sam2Network, path: Path, boxes: Sequence[Sequence[float]], n_frames: int) -> Iterator[Frame]:
    """Frame by frame, boxes given on the first. The network is folded."""
    tracker, side_px = Tracker(network, torch.device("cpu")), network.config.image_size
    labels = torch.tensor([TOP_LEFT, BOTTOM_RIGHT])
    prompts = [TrackerPrompt(str(i), (torch.tensor(box) * side_px).view(2, 2), labels) for i, box in enumerate(boxes)]
    with av.open(str(path)) as opened:
        for index, decoded in enumerate(islice(opened.decode(video=0), n_frames)):
            image = decoded.to_ndarray(format="rgb24")
            features = network.encode(normalised(cv2.resize(image, (side_px, side_px), interpolation=cv2.INTER_AREA)[None]))
            found = tracker.step(index, features) if index else tracker.prompt(0, features, prompts)
            yield image, np.stack([cv2.resize(logits.numpy(), image.shape[1::-1]) > 0 for logits in found.logits])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True, help="folder with cups.mp4, dog.mp4 and bedroom.mp4 of facebookresearch/sam2")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    network = load_network(arguments.weights).fold()
    owners = tuple(range(1, N_OBJECTS + 1))
    rows = []
    for clips in held_out_clips(load_assets(arguments.work, "held_out"), CLIPS, network.config.image_size).values():
        rows += [row(list(zip(clip.images, followed(network, clip, owners), strict=True))) for clip in clips]
    for name, (boxes, n_frames) in VIDEOS.items():
        rows.append(row(list(followed_video(network, arguments.videos / name, boxes, n_frames))))
    Image.fromarray(np.concatenate(rows)).quantize(COLORS, dither=Image.Dither.NONE).save(arguments.to, optimize=True)


if __name__ == "__main__":
    main()
