"""The lesson of a clip: prompt objects on the first frame, follow them, sometimes correct them; every frame is judged."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.train_demo.clip_batches import ClipBatch
from checkpoints.train_demo.follow import Answer, Bank, answer, answer_to_mask, of_tracks, remembered
from checkpoints.train_demo.interact import Prompts, box_around, click_on, corrected
from checkpoints.train_demo.losses import decoder_loss
from checkpoints.train_demo.scenes import MIN_VISIBLE_SHARE
from sam2_backend.network import FeatureMaps, Sam2Network

SHARE_MASKS, SHARE_CLICKS = 0.5, 0.25  # what the first frame is prompted with; the rest are boxes
SHARE_CORRECTED = 0.25
OBJECT_WEIGHT = 0.5
LONGEST_AGO_FRAMES = 60  # a prompted frame may seem that much older than the clip is long


@dataclass(frozen=True, slots=True)
class Truth:
    """Where the objects are on one frame. `masks` (B, S, S) bool and `is_visible` (B,) on the CPU; (B,) `is_sure`: of its visibility."""

    masks: Tensor
    coverage: Tensor
    is_visible: Tensor
    is_sure: Tensor

    @classmethod
    def of(cls, masks: Tensor, device: torch.device) -> "Truth":
        coverage = F.avg_pool2d(masks[:, None].float(), 4)[:, 0].to(device)
        pixels = masks.sum((1, 2))
        is_visible = pixels >= MIN_VISIBLE_SHARE * masks[0].numel()
        return cls(masks, coverage, is_visible.to(device), (is_visible | (pixels == 0)).to(device))


def frame_loss(found: Answer, truth: Truth) -> Tensor:
    """Masks and scores of visible objects; whether an object is there, of all but those of which a few pixels are left."""
    out, seen = found.out, truth.is_visible
    loss = out.mask_logits.new_zeros((), dtype=torch.float32)
    if seen.any():
        loss = decoder_loss(out.mask_logits[seen].float(), out.scores[seen].float(), truth.coverage[seen]) * seen.float().mean()
    presence = F.binary_cross_entropy_with_logits(out.object_logits[:, 0].float(), seen.float(), reduction="none")
    return loss + OBJECT_WEIGHT * (presence * truth.is_sure).mean()


def clip_loss(network: Sam2Network, batch: ClipBatch, generator: torch.Generator, *, truth_share: float) -> Tensor:
    """The mean over frames. With chance TRUTH_SHARE the clip's memory is the truth in place of what was found: a start for beginners."""
    device = network.no_mem_embed.device
    n_frames, side_px = batch.images.shape[1], batch.images.shape[-1]
    network.sam_prompt_encoder.image_size = side_px
    features = network.encode(batch.images.flatten(0, 1).to(device))
    draw = torch.rand(4, generator=generator)
    is_told = bool(draw[0] < truth_share)
    corrected_frame = int(draw[1] / SHARE_CORRECTED * (n_frames - 1)) + 1  # beyond the clip: never
    ago = int(draw[3] * 2 * LONGEST_AGO_FRAMES) - LONGEST_AGO_FRAMES
    bank = Bank(prompted_earlier_by=max(0, ago))
    total = torch.zeros((), device=device)
    for frame in range(n_frames):
        shown = of_tracks(features, batch.clip_of_track.to(device) * n_frames + frame)
        truth = Truth.of(batch.masks[:, frame], device)
        if frame == 0:
            found = _prompted(network, shown, truth, float(draw[2]), generator)
        else:
            conditioned = bank.condition(network, shown[2], frame)
            found = answer(network, shown, conditioned, None)
            if frame == corrected_frame:
                total = total + frame_loss(found, truth)
                found = answer(network, shown, conditioned, _correction(found, truth, generator).to(device))
        total = total + frame_loss(found, truth)
        is_prompted = frame in (0, corrected_frame)
        is_given = is_told or (frame == 0 and draw[2] < SHARE_MASKS)
        memory = remembered(network, shown[2], found, truth=truth.masks.to(device) if is_given else None, is_prompted=is_prompted)
        (bank.prompted if is_prompted else bank.tracked).append((frame, *memory))
    return total / n_frames


def _prompted(network: Sam2Network, shown: FeatureMaps, truth: Truth, kind: float, generator: torch.Generator) -> Answer:
    if kind < SHARE_MASKS:
        return answer_to_mask(network, shown, truth.masks.to(shown[2].device))
    if kind < SHARE_MASKS + SHARE_CLICKS:
        prompts = click_on(truth.masks, generator, centered=False)
    else:
        prompts = box_around(truth.masks, generator, jitter=0.05)
    return answer(network, shown, shown[2] + network.no_mem_embed.view(1, -1, 1, 1), prompts.to(shown[2].device))


def _correction(found: Answer, truth: Truth, generator: torch.Generator) -> Prompts:
    """One click where the tracked mask is wrong, and that mask to improve."""
    n_tracks = len(truth.masks)
    nothing = Prompts(torch.zeros(n_tracks, 0, 2), torch.zeros(n_tracks, 0, dtype=torch.long))
    return corrected(nothing, found.mask_logits.detach().float().cpu(), truth.masks, generator, centered=False)
