"""A simulated person: where the first click, the box and the corrective clicks go. All tensors are per prompt and on the CPU,
coordinates in model pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NEGATIVE, POSITIVE, BOX_START, BOX_END = 0, 1, 2, 3
LOGIT_LIMIT = 32.0  # what SAM 2's predictors clamp a remembered mask to
DRAWN_LOGIT = 10.0  # a given mask enters as ±10


@dataclass(slots=True)
class Prompts:
    """What the prompt encoder gets: (B, n, 2) x, y; (B, n) labels; (B, 1, S/4, S/4) logits or nothing."""

    points_xy_px: Tensor
    labels: Tensor
    mask_logits: Tensor | None = None

    def to(self, device: torch.device) -> "Prompts":
        return Prompts(
            self.points_xy_px.to(device), self.labels.to(device), None if self.mask_logits is None else self.mask_logits.to(device)
        )

    def with_click(self, xy_px: Tensor, label: Tensor, mask_logits: Tensor) -> "Prompts":
        points = torch.cat([self.points_xy_px, xy_px[:, None]], 1)
        return Prompts(points, torch.cat([self.labels, label[:, None]], 1), mask_logits)


def random_pixel(inside: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 2) float x, y of one random pixel per (B, H, W) bool mask; where a mask is empty, of any pixel."""
    lottery = torch.rand(inside.shape, generator=generator) + inside
    flat = lottery.flatten(1).argmax(1)
    return torch.stack([flat % inside.shape[2], flat // inside.shape[2]], 1).float()


def innermost_pixel(inside: Tensor) -> Tensor:
    """As `random_pixel`, but the pixel farthest from the mask's edge: where people click."""
    import cv2
    import numpy as np

    centers = []
    for mask in inside.numpy().astype(np.uint8):
        distance = cv2.distanceTransform(cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        centers.append((float(x), float(y)))
    return torch.tensor(centers)


def click_on(masks: Tensor, generator: torch.Generator, *, centered: bool) -> Prompts:
    """One positive click per (B, S, S) bool mask."""
    xy_px = innermost_pixel(masks) if centered else random_pixel(masks, generator)
    return Prompts(xy_px[:, None], torch.full((len(masks), 1), POSITIVE))


def box_around(masks: Tensor, generator: torch.Generator, jitter: float) -> Prompts:
    """The bounding box as two labelled points; each side moved by up to JITTER of the box's size, 20 px at most."""
    columns, rows = masks.any(1), masks.any(2)
    x0, y0 = columns.int().argmax(1), rows.int().argmax(1)
    x1 = masks.shape[2] - columns.flip(1).int().argmax(1)
    y1 = masks.shape[1] - rows.flip(1).int().argmax(1)
    corners = torch.stack([x0, y0, x1, y1], 1).float()
    sides = (corners[:, 2:] - corners[:, :2]).repeat(1, 2)
    noise = torch.randn(corners.shape, generator=generator) * sides * jitter
    corners = (corners + noise.clamp(-20, 20)).clamp(0, masks.shape[2])
    labels = torch.tensor([[BOX_START, BOX_END]]).expand(len(masks), 2)
    return Prompts(corners.view(-1, 2, 2), labels)


def drawn_mask(masks: Tensor, generator: torch.Generator) -> Prompts:
    """The mask itself as the prompt, sometimes shifted by a few pixels; no points."""
    shift = torch.randint(-6, 7, (2,), generator=generator).tolist()
    drawn = torch.roll(masks, shift, (1, 2)) if torch.rand((), generator=generator) < 0.5 else masks
    coverage = F.avg_pool2d(drawn[:, None].float(), 4)
    no_points, no_labels = torch.zeros(len(masks), 0, 2), torch.zeros(len(masks), 0, dtype=torch.long)
    return Prompts(no_points, no_labels, (coverage * 2 - 1) * DRAWN_LOGIT)


def corrected(prompts: Prompts, logits: Tensor, masks: Tensor, generator: torch.Generator, *, centered: bool) -> Prompts:
    """One more click where (B, S/4, S/4) logits are wrong, and the logits as the mask to improve; inside the object where nothing is wrong."""
    guess = F.interpolate(logits[:, None], size=masks.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0
    wrong = guess != masks
    wrong = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, masks)
    xy_px = _middle_of_largest(wrong) if centered else random_pixel(wrong, generator)
    rows = torch.arange(len(masks))
    label = masks[rows, xy_px[:, 1].long(), xy_px[:, 0].long()].long()
    return prompts.with_click(xy_px, label, logits[:, None].clamp(-LOGIT_LIMIT, LOGIT_LIMIT))


def _middle_of_largest(wrong: Tensor) -> Tensor:
    import cv2
    import numpy as np

    largest = []
    for mask in wrong.numpy().astype(np.uint8):
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        largest.append(parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()) if count > 1 else mask > 0)
    return innermost_pixel(torch.from_numpy(np.stack(largest)))
