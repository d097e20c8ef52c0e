"""Held-out video figures, by the tracker that ships: two objects through 24 frames, each given by its mask on the first."""

import copy
from collections.abc import Iterator

import numpy as np
import torch

from checkpoints.train_demo.assets import Assets
from checkpoints.train_demo.batches import normalised
from checkpoints.train_demo.clips import Clip, ClipSize, render_clip
from checkpoints.train_demo.evaluate import HELD_OUT_SEED
from sam2_backend.network import Sam2Network
from sam2_backend.tracker import FrameLogits, Tracker, TrackerPrompt

N_FRAMES, N_OBJECTS, HIDDEN_FRAMES = 24, 2, 4
FOUND_IOU, LAST_FRAMES = 0.5, 4  # found again: so good on average over the last frames of the clip


def held_out_clips(assets: Assets, count: int, side_px: int) -> dict[str, list[Clip]]:
    """COUNT clips in which two objects move as they please, and COUNT in which something hides the first for four frames."""
    size = ClipSize(side_px, N_FRAMES)
    return {
        "moving": [render_clip(assets, HELD_OUT_SEED + 2, i, size, n_objects=N_OBJECTS, event="none") for i in range(count)],
        "hidden": [
            render_clip(assets, HELD_OUT_SEED + 3, i, size, n_objects=N_OBJECTS, event="covered", hidden_frames=HIDDEN_FRAMES)
            for i in range(count)
        ],
    }


def followed(network: Sam2Network, clip: Clip, owners: tuple[int, ...]) -> Iterator[np.ndarray]:
    """(objects, S, S) bool for every frame, the first included, on which the masks are given. The network is folded."""
    side_px = clip.owner.shape[1]
    tracker = Tracker(network, torch.device("cpu"))
    for frame, image in enumerate(clip.images):
        with torch.inference_mode():
            features = network.encode(normalised(image[None]))
        if frame == 0:
            given = [TrackerPrompt(str(owner), mask=torch.from_numpy(clip.owner[0] == owner)) for owner in owners]
            found = tracker.prompt(0, features, given)
        else:
            found = tracker.step(frame, features)
        yield _at_full_size(found, side_px)


def _at_full_size(found: FrameLogits, side_px: int) -> np.ndarray:
    size = (side_px, side_px)
    masks: np.ndarray = (torch.nn.functional.interpolate(found.logits[None], size, mode="bilinear", align_corners=False)[0] > 0).numpy()
    return masks


def jaccard(clip: Clip, owners: tuple[int, ...], masks: Iterator[np.ndarray]) -> np.ndarray:
    """(objects, frames after the first): IoU, and where the object is not there, 1 for an empty mask and 0 for any other."""
    rows = []
    for frame, guess in enumerate(masks):
        truth = clip.owner[frame] == np.array(owners)[:, None, None]
        union = (guess | truth).sum((1, 2))
        rows.append(np.where(union > 0, (guess & truth).sum((1, 2)) / np.maximum(union, 1), 1.0))
    return np.stack(rows[1:], 1)


def measure_clips(network: Sam2Network, judges: dict[str, list[Clip]]) -> dict[str, float]:
    """`KIND_j` → mean over frames, objects and clips; `hidden_found_again` → the share of clips."""
    folded, owners = copy.deepcopy(network).fold(), tuple(range(1, N_OBJECTS + 1))
    scores = {kind: [jaccard(clip, owners, followed(folded, clip, owners)) for clip in clips] for kind, clips in judges.items()}
    figures = {f"{kind}_j": round(float(np.mean(parts)), 4) for kind, parts in scores.items()}
    again = [part[0, -LAST_FRAMES:].mean() >= FOUND_IOU for part in scores["hidden"]]
    return {**figures, "hidden_found_again": round(float(np.mean(again)), 4)}
