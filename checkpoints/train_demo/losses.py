"""Focal, dice and IoU losses as in the SAM papers, on the decoder's quarter-size logits against the share of each cell that is object."""

import torch
from torch import Tensor
from torch.nn import functional as F

#: SAM weighs focal to dice 20 to 1, with a focal loss that counts objects a quarter; with less, small objects are learnt sooner.
FOCAL_WEIGHT, DICE_WEIGHT, IOU_WEIGHT = 5.0, 1.5, 1.0
LOSERS_WEIGHT = 0.1


def mask_loss(logits: Tensor, coverage: Tensor) -> Tensor:
    """(B, C, h, w) logits, (B, h, w) coverage in 0..1 -> (B, C) weighted focal + dice."""
    target = coverage[:, None].expand_as(logits)
    chance = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = ((chance - target).square() * cross_entropy).mean((2, 3))  # for a 0/1 target this is the focal loss with gamma 2
    overlap = (chance * target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (chance.square().sum((2, 3)) + target.square().sum((2, 3)) + 1)
    return FOCAL_WEIGHT * focal + DICE_WEIGHT * dice


@torch.no_grad()
def measured_iou(logits: Tensor, coverage: Tensor) -> Tensor:
    """(B, C) intersection over union of the thresholded maps."""
    guess, truth = logits > 0, (coverage > 0.5)[:, None]
    union = (guess | truth).sum((2, 3))
    return torch.where(union > 0, (guess & truth).sum((2, 3)) / union.clamp(min=1), 1.0)


def decoder_loss(logits: Tensor, predicted_iou: Tensor, coverage: Tensor) -> Tensor:
    """(B, 4, h, w) logits, (B, 4) scores: output 0 answers alone; of outputs 1–3 the best is taught; every score learns the real IoU.

    The other two of three are taught a little, lest one is never the best again; the scores' loss is a cross entropy, because an
    absolute difference behind a sigmoid stops teaching once they have all fallen to zero.
    """
    losses = mask_loss(logits.float(), coverage)
    guess, truth = predicted_iou.float().clamp(1e-4, 1 - 1e-4), measured_iou(logits, coverage)
    scores = -(truth * guess.log() + (1 - truth) * (1 - guess).log()).mean(1)
    three = losses[:, 1:]
    return (losses[:, 0] + three.min(1).values + LOSERS_WEIGHT * three.mean(1) + IOU_WEIGHT * scores).mean()
