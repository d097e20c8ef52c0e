"""The first course: clicks, boxes and masks on drawn scenes. Seeded; stops and resumes at any step; the schedule follows trained time."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.train_demo.assets import load_assets
from checkpoints.train_demo.batches import Batch, BatchMaker, BatchSize
from checkpoints.train_demo.configuration import DEMO_CONFIG, IMAGE_PREFIXES
from checkpoints.train_demo.evaluate import held_out_scenes, measure
from checkpoints.train_demo.follow import of_tracks
from checkpoints.train_demo.interact import Prompts, box_around, click_on, corrected, drawn_mask
from checkpoints.train_demo.losses import decoder_loss
from checkpoints.train_demo.start import starting_network, teach_where
from checkpoints.train_demo.trainer import Course, Trainer
from sam2_backend.network import Sam2Network

SEED = 20
SHARE_CLICKS, SHARE_BOXES = 0.625, 0.25  # the rest are masks
WHERE_STEPS = 330
JUDGED_SCENES = 48  # of each kind
PEAK_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class Phase:
    """`corrections`: the chance of 0, 1, 2, 3 corrective clicks."""

    until: float  # share of the trained time
    size: BatchSize
    corrections: tuple[float, float, float, float]


#: Small pictures first: a quarter of the cost for the same lesson, and every part of the network works at any size.
PHASES = (
    Phase(0.1, BatchSize(side_px=128, images=12, prompts_per_image=4, fresh_images=6), (0.8, 0.2, 0.0, 0.0)),
    Phase(0.66, BatchSize(side_px=128, images=12, prompts_per_image=4, fresh_images=6), (0.4, 0.35, 0.15, 0.1)),
    Phase(9.99, BatchSize(side_px=256, images=8, prompts_per_image=3, fresh_images=3), (0.6, 0.25, 0.1, 0.05)),
)


def first_prompts(masks: Tensor, generator: torch.Generator) -> list[tuple[Tensor, Prompts]]:
    """The batch dealt into clicks, boxes and masks: (places in the batch, their prompts)."""
    order = torch.randperm(len(masks), generator=generator)
    n_clicks, n_boxes = round(SHARE_CLICKS * len(masks)), round(SHARE_BOXES * len(masks))
    clicks, boxes, drawn = order.split([n_clicks, n_boxes, len(masks) - n_clicks - n_boxes])
    centered = bool(torch.rand((), generator=generator) < 0.3)
    return [
        (clicks, click_on(masks[clicks], generator, centered=centered)),
        (boxes, box_around(masks[boxes], generator, jitter=0.05)),
        (drawn, drawn_mask(masks[drawn], generator)),
    ]


def batch_loss(network: Sam2Network, batch: Batch, phase: Phase, generator: torch.Generator) -> Tensor:
    """All rounds of all prompts of a batch: the mean over rounds, each weighing by its number of prompts."""
    network.sam_prompt_encoder.image_size = phase.size.side_px
    device = network.no_mem_embed.device
    encoded = network.encode(batch.images.to(device))
    coverage = F.avg_pool2d(batch.masks[:, None].float(), 4)[:, 0]
    n_corrections = int(torch.multinomial(torch.tensor(phase.corrections), 1, generator=generator))
    total = torch.zeros((), device=device)
    for places, prompts in first_prompts(batch.masks, generator):
        features = of_tracks(encoded, (places // phase.size.prompts_per_image).to(device))
        truth = coverage[places].to(device)
        for turn in range(1 + n_corrections):
            given = prompts.to(device)
            out = network.decode(features, given.points_xy_px, given.labels, given.mask_logits)
            loss = decoder_loss(out.mask_logits, out.scores, truth) + 0.05 * F.softplus(-out.object_logits.float()).mean()
            total = total + loss * len(places) / len(batch.masks)
            if turn < n_corrections:
                ambiguous = prompts.labels.shape[1] == 1 and turn == 0
                chosen = 1 + out.scores[:, 1:].argmax(1).cpu() if ambiguous else torch.zeros(len(places), dtype=torch.long)
                shown = out.mask_logits.detach().float().cpu()[torch.arange(len(places)), chosen]
                prompts = corrected(prompts, shown, batch.masks[places], generator, centered=False)
    return total / (1 + n_corrections)


def taught_network() -> Sam2Network:
    network = starting_network(SEED)
    print(f"taught where, loss {teach_where(network, SEED, steps=WHERE_STEPS):.3f}", flush=True)
    return network


def image_course(work: Path) -> Course:
    """Over the material cached in WORK."""
    batches = BatchMaker(load_assets(work, "train"), SEED)
    judges = held_out_scenes(load_assets(work, "held_out"), JUDGED_SCENES, DEMO_CONFIG.image_size)

    def loss(network: Sam2Network, step: int, done: float, generator: torch.Generator) -> Tensor:
        phase = next(phase for phase in PHASES if done < phase.until)
        return batch_loss(network, batches.batch(step, phase.size), phase, generator)

    def measured(network: Sam2Network) -> dict[str, float]:
        return measure(network, judges)

    return Course("images", SEED, taught_network, dict.fromkeys(IMAGE_PREFIXES, 1.0), PEAK_RATE, loss, measured)


def train(course: Course, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    (arguments.work / f"{course.name}-pid").write_text(str(os.getpid()))
    Trainer(course, arguments.work, arguments.hours).run()


def parser(about: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--work", type=Path, required=True, help="folder of the cached material, the state and the log")
    made.add_argument("--hours", type=float, default=1.0, help="trained time the schedule is made for")
    made.add_argument("--threads", type=int, default=2)
    return made


if __name__ == "__main__":
    options = parser(__doc__).parse_args()
    train(image_course(options.work), options)
