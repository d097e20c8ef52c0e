"""Meta's automatic mask generator, step by step as it is written (sam2/automatic_mask_generator.py and utils/amg.py at 2b90b9f), on
transformers' unmodified network with our weights: the oracle of the parity test and the opponent of automatic.py.

Its own code needs torchvision for non-maximum suppression; here that is the loop of torchvision's CPU kernel, vectorised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference import reference_of
from sam2_backend.checkpoints import Checkpoint
from sam2_backend.dataset_messages import EverythingOptions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Masks:
    """Everything known of N masks, filtered together, as MaskData is."""

    masks: list[np.ndarray]
    ious: Tensor
    boxes: Tensor
    crop_boxes: Tensor

    def filter(self, keep: Tensor) -> None:
        self.masks = [self.masks[i] for i in keep.tolist()]
        self.ious, self.boxes, self.crop_boxes = self.ious[keep], self.boxes[keep], self.crop_boxes[keep]

    def extended(self, other: Masks) -> Masks:
        joined = (torch.cat(pair) for pair in ((self.ious, other.ious), (self.boxes, other.boxes), (self.crop_boxes, other.crop_boxes)))
        return Masks(self.masks + other.masks, *joined)


class ReferenceGenerator:
    """SAM2AutomaticMaskGenerator. Masks are kept as packed bits in place of run lengths."""

    def __init__(self, checkpoint: Checkpoint, options: EverythingOptions) -> None:
        self.model, self.side = reference_of(checkpoint.state_dict, checkpoint.config), checkpoint.config.image_size
        self.options = options

    @torch.inference_mode()
    def generate(self, image: np.ndarray) -> list[tuple[np.ndarray, float]]:
        """(H, W, 3) uint8 → masks (H, W) bool with their estimated IoU."""
        options, size = self.options, image.shape[:2]
        boxes, layers = crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
        found = empty()
        for box, layer in zip(boxes, layers, strict=True):
            found = found.extended(self._process_crop(image, box, layer))
        if len(boxes) > 1:
            sides = found.crop_boxes[:, 2:] - found.crop_boxes[:, :2]
            found.filter(nms(found.boxes, 1 / (sides[:, 0] * sides[:, 1]), options.crop_nms_thresh))
        n_pixels = size[0] * size[1]
        unpacked = (np.unpackbits(mask)[:n_pixels].reshape(size).astype(bool) for mask in found.masks)
        return list(zip(unpacked, found.ious.tolist(), strict=True))

    def _process_crop(self, image: np.ndarray, box: list[int], layer: int) -> Masks:
        options = self.options
        cropped = image[box[1] : box[3], box[0] : box[2]]
        size = cropped.shape[:2]
        embeddings = self.model.get_image_embeddings(self._pixels(cropped))
        n_side = int(options.points_per_side / options.crop_n_points_downscale_factor**layer)
        offset = 1 / (2 * n_side)
        one_side = np.linspace(offset, 1 - offset, n_side)
        grid = np.stack([np.tile(one_side[None], (n_side, 1)), np.tile(one_side[:, None], (1, n_side))], -1).reshape(-1, 2)
        found = empty()
        for start in range(0, len(grid), options.points_per_batch):
            points = grid[start : start + options.points_per_batch] * np.array(size)[None, ::-1]
            found = found.extended(self._process_batch(embeddings, points, size, box, image.shape[:2]))
        found.filter(nms(found.boxes, found.ious, options.box_nms_thresh))
        found.boxes = found.boxes + torch.tensor([[box[0], box[1], box[0], box[1]]])
        found.crop_boxes = torch.tensor([box] * len(found.masks), dtype=torch.float32).reshape(-1, 4)
        return found

    def _process_batch(self, embeddings, points: np.ndarray, size, box: list[int], whole) -> Masks:
        options = self.options
        xy = torch.as_tensor(points, dtype=torch.float32) / torch.tensor([size[1], size[0]]) * self.side
        masks, ious, low = self._predict(embeddings, xy, None, size, multimask=options.multimask_output)
        if options.use_m2m:
            repeated, masks_so_far = xy.repeat_interleave(low.shape[1], 0), low.flatten(0, 1)
            parts = [slice(start, start + options.points_per_batch) for start in range(0, len(repeated), options.points_per_batch)]
            again = [self._predict(embeddings, repeated[part], masks_so_far[part], size, multimask=False) for part in parts]
            masks, ious = (torch.cat([batch[i] for batch in again]) for i in (0, 1))
        masks, ious = masks.flatten(0, 1), ious.flatten(0, 1)
        if options.pred_iou_thresh > 0:
            keep = ious > options.pred_iou_thresh
            masks, ious = masks[keep], ious[keep]
        if options.stability_score_thresh > 0:
            inner = (masks > options.mask_threshold + options.stability_score_offset).sum((-1, -2))
            outer = (masks > options.mask_threshold - options.stability_score_offset).sum((-1, -2))
            keep = inner / outer >= options.stability_score_thresh
            masks, ious = masks[keep], ious[keep]
        masks = masks > options.mask_threshold
        boxes = mask_boxes(masks)
        keep = ~near_crop_edge(boxes, box, [0, 0, whole[1], whole[0]])
        masks, ious, boxes = masks[keep], ious[keep], boxes[keep]
        padded = F.pad(masks, (box[0], whole[1] - box[2], box[1], whole[0] - box[3]))
        return Masks([np.packbits(mask.numpy()) for mask in padded], ious, boxes, torch.zeros(len(ious), 4))

    def _predict(self, embeddings, xy: Tensor, low_res: Tensor | None, size, *, multimask: bool):
        found = []
        labels = torch.ones(1, len(xy), 1, dtype=torch.long)
        for start in range(0, len(xy), len(xy) if low_res is None else 1):  # transformers takes one mask prompt per image
            part = slice(start, len(xy) if low_res is None else start + 1)
            out = self.model(
                image_embeddings=embeddings,
                input_points=xy[None, part, None],
                input_labels=labels[:, part],
                input_masks=None if low_res is None else low_res[part, None],
                multimask_output=multimask,
            )
            found.append((out.pred_masks[0], out.iou_scores[0]))
        low, ious = (torch.cat([batch[i] for batch in found]) for i in (0, 1))
        return F.interpolate(low.float(), tuple(size), mode="bilinear", align_corners=False), ious, low.clamp(-32, 32)

    def _pixels(self, image: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        square = F.interpolate(pixels, (self.side, self.side), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return (square.float() / 255 - mean) / std


def empty() -> Masks:
    return Masks([], torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, 4))


def crop_boxes(size, n_layers: int, overlap_ratio: float) -> tuple[list[list[int]], list[int]]:
    height, width = size
    boxes, layers = [[0, 0, width, height]], [0]
    for layer in range(n_layers):
        n_side = 2 ** (layer + 1)
        overlap = int(overlap_ratio * min(height, width) * (2 / n_side))
        crop_w, crop_h = (math.ceil((overlap * (n_side - 1) + length) / n_side) for length in (width, height))
        starts_x, starts_y = ([(length - overlap) * i for i in range(n_side)] for length in (crop_w, crop_h))
        for x0, y0 in product(starts_x, starts_y):
            boxes.append([x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)])
            layers.append(layer + 1)
    return boxes, layers


def mask_boxes(masks: Tensor) -> Tensor:
    """batched_mask_to_box: the last row and column are included; four zeros for an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for i, mask in enumerate(masks):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if len(rows):
            boxes[i] = torch.stack([columns[0], rows[0], columns[-1], rows[-1]]).float()
    return boxes


def near_crop_edge(boxes: Tensor, crop: list[int], whole: list[int], atol: float = 20.0) -> Tensor:
    uncropped = boxes + torch.tensor([[crop[0], crop[1], crop[0], crop[1]]])
    near_crop = torch.isclose(uncropped, torch.tensor(crop, dtype=torch.float32)[None], atol=atol, rtol=0)
    near_image = torch.isclose(uncropped, torch.tensor(whole, dtype=torch.float32)[None], atol=atol, rtol=0)
    return (near_crop & ~near_image).any(1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """torchvision.ops.nms."""
    order, kept = scores.sort(stable=True, descending=True).indices, []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low, high = torch.maximum(boxes[best, :2], boxes[order, :2]), torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        order = order[~(shared / (areas[best] + areas[order] - shared) > threshold)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)
