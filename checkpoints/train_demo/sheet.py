"""Draw what the model answers: held-out scenes and photographs, each with its click and the mask, on one picture to look at."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from checkpoints.train_demo.assets import Assets, load_assets
from checkpoints.train_demo.batches import normalised
from checkpoints.train_demo.evaluate import held_out_scenes, load_network
from checkpoints.train_demo.interact import POSITIVE, innermost_pixel
from sam2_backend.network import Sam2Network

TILE_PX = 160
COLORS = 256  # a palette: the sheet lives in the repository
#: Photographs with a click as shares of width and height.
PHOTO_CLICKS = {
    "truck.jpg": ((0.5, 0.45), (0.28, 0.62), (0.6, 0.3)),
    "cars.jpg": ((0.45, 0.6), (0.8, 0.75), (0.2, 0.7)),
    "groceries.jpg": ((0.35, 0.5), (0.65, 0.55), (0.5, 0.8)),
}
#: The same for held-out photographs of scikit-image, by their place: a cup of coffee, a motorcycle, a rocket.
HELD_OUT_CLICKS = {0: (0.5, 0.35), 2: (0.5, 0.43), 4: (0.5, 0.55)}


@torch.inference_mode()
def answer(network: Sam2Network, image: np.ndarray, click_xy_px: tuple[float, float]) -> np.ndarray:
    """The (H, W) bool mask of one click in an (H, W, 3) uint8 image: the best scored of the three candidates."""
    height, width = image.shape[:2]
    side = network.config.image_size
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    click = torch.tensor([[[click_xy_px[0] / width * side, click_xy_px[1] / height * side]]])
    out = network.decode(network.encode(normalised(small[None])), click, torch.tensor([[POSITIVE]]))
    logits = out.mask_logits[0, 1 + int(out.scores[0, 1:].argmax())].numpy()
    mask: np.ndarray = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) > 0
    return mask


def tile(network: Sam2Network, image: np.ndarray, click_xy_px: tuple[float, float], truth: np.ndarray | None = None) -> np.ndarray:
    """The image with the mask in blue, the click in red and, where it is known, the true outline in green."""
    mask = answer(network, image, click_xy_px)
    drawn = np.where(mask[..., None], image * 0.45 + np.array([20, 60, 255]) * 0.55, image).astype(np.uint8)
    scale = TILE_PX / image.shape[1], TILE_PX / image.shape[0]
    drawn = cv2.resize(drawn, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
    if truth is not None:
        large = cv2.resize(truth.astype(np.uint8), (TILE_PX, TILE_PX), interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, (0, 255, 0), 1)
    at = round(click_xy_px[0] * scale[0]), round(click_xy_px[1] * scale[1])
    cv2.circle(drawn, at, 4, (255, 255, 255), -1)
    cv2.circle(drawn, at, 3, (255, 0, 0), -1)
    return drawn


def scene_tiles(network: Sam2Network, assets: Assets, count: int) -> list[np.ndarray]:
    """The first COUNT held-out scenes of each kind, none chosen by its result; the largest object is asked for."""
    tiles = []
    for scenes in held_out_scenes(assets, count, network.config.image_size).values():
        for scene in scenes:
            largest = int(np.bincount(scene.owner[scene.owner > 0]).argmax())
            truth = scene.owner == largest
            x, y = innermost_pixel(torch.from_numpy(truth[None]))[0].tolist()
            tiles.append(tile(network, scene.image, (x + 0.5, y + 0.5), truth))
    return tiles


def photo_tiles(network: Sam2Network, folder: Path, held_out: list[np.ndarray]) -> list[np.ndarray]:
    tiles = []
    for place, (x, y) in HELD_OUT_CLICKS.items():
        tiles.append(tile(network, held_out[place], (x * held_out[place].shape[1], y * held_out[place].shape[0])))
    for name, clicks in PHOTO_CLICKS.items():
        read = cv2.imread(str(folder / name))
        if read is None:
            raise FileNotFoundError(folder / name)
        image = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
        tiles += [tile(network, image, (x * image.shape[1], y * image.shape[0])) for x, y in clicks]
    return tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder with truck.jpg, cars.jpg and groceries.jpg of facebookresearch/sam2"
    )
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=6)
    arguments = parser.parse_args()
    network = load_network(arguments.weights)
    held_out = load_assets(arguments.work, "held_out")
    tiles = scene_tiles(network, held_out, 12) + photo_tiles(network, arguments.photos, held_out.photos)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % arguments.columns)
    rows = [np.concatenate(tiles[i : i + arguments.columns], 1) for i in range(0, len(tiles), arguments.columns)]
    Image.fromarray(np.concatenate(rows)).quantize(COLORS, dither=Image.Dither.NONE).save(arguments.to, optimize=True)


if __name__ == "__main__":
    main()
