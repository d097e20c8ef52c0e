"""Train the image part of the demo network on drawn scenes. Seeded; stops and resumes at any step; the schedule follows trained time."""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.train_demo.assets import load_assets
from checkpoints.train_demo.batches import Batch, BatchMaker, BatchSize
from checkpoints.train_demo.configuration import DEMO_CONFIG, TRAINED_PREFIXES
from checkpoints.train_demo.evaluate import held_out_scenes, measure
from checkpoints.train_demo.interact import Prompts, box_around, click_on, corrected, drawn_mask
from checkpoints.train_demo.losses import decoder_loss
from checkpoints.train_demo.start import starting_network, teach_where
from sam2_backend.network import FeatureMaps, Sam2Network

SEED = 20
SHARE_CLICKS, SHARE_BOXES = 0.625, 0.25  # the rest are masks
WHERE_STEPS = 330
PEAK_RATE, LAST_RATE, WARM_UP_STEPS = 1e-3, 1e-5, 150
WEIGHT_DECAY, GRADIENT_LIMIT, AVERAGE_DECAY = 0.01, 1.0, 0.998
MEASURE_EVERY_S, LONGEST_STEP_S = 180.0, 10.0  # a longer step means that the process was paused


@dataclass(frozen=True, slots=True)
class Phase:
    """`corrections`: the chance of 0, 1, 2, 3 corrective clicks."""

    until: float  # share of the trained time
    size: BatchSize
    corrections: tuple[float, float, float, float]


#: Small pictures first: a quarter of the cost for the same lesson, and every part of the network works at any size.
PHASES = (
    Phase(0.1, BatchSize(side_px=128, images=12, prompts_per_image=4, fresh_images=6), (0.8, 0.2, 0.0, 0.0)),
    Phase(0.85, BatchSize(side_px=128, images=12, prompts_per_image=4, fresh_images=6), (0.4, 0.35, 0.15, 0.1)),
    Phase(9.99, BatchSize(side_px=256, images=8, prompts_per_image=3, fresh_images=3), (0.35, 0.35, 0.2, 0.1)),
)


@dataclass(slots=True)
class Progress:
    step: int = 0
    trained_s: float = 0.0
    best: float = 0.0
    loss: float = 0.0


def learning_rate(progress: Progress, total_s: float) -> float:
    """Linear warm-up by steps, then a cosine over the trained time."""
    warm = min(1.0, (progress.step + 1) / WARM_UP_STEPS)
    done = torch.tensor(min(1.0, progress.trained_s / total_s))
    return warm * (LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + float(torch.cos(done * torch.pi))))


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
    per_prompt: FeatureMaps = tuple(part.repeat_interleave(phase.size.prompts_per_image, 0) for part in network.encode(batch.images))  # type: ignore[assignment]
    coverage = F.avg_pool2d(batch.masks[:, None].float(), 4)[:, 0]
    n_corrections = int(torch.multinomial(torch.tensor(phase.corrections), 1, generator=generator))
    total = torch.zeros(())
    for places, prompts in first_prompts(batch.masks, generator):
        features: FeatureMaps = tuple(part[places] for part in per_prompt)  # type: ignore[assignment]
        for turn in range(1 + n_corrections):
            out = network.decode(features, prompts.points_xy_px, prompts.labels, prompts.mask_logits)
            loss = decoder_loss(out.mask_logits, out.scores, coverage[places]) + 0.05 * F.softplus(-out.object_logits).mean()
            total = total + loss * len(places) / len(batch.masks)
            if turn < n_corrections:
                ambiguous = prompts.labels.shape[1] == 1 and turn == 0
                chosen = 1 + out.scores[:, 1:].argmax(1) if ambiguous else torch.zeros(len(places), dtype=torch.long)
                shown = out.mask_logits.detach()[torch.arange(len(places)), chosen]
                prompts = corrected(prompts, shown, batch.masks[places], generator, centered=False)
    return total / (1 + n_corrections)


class Trainer:
    """Owns the network, its running average, the optimiser and the state file."""

    def __init__(self, work: Path, hours: float) -> None:
        self.work, self.total_s = work, hours * 3600
        self.network = starting_network(SEED).train()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED_PREFIXES))
        self.average = starting_network(SEED).eval().requires_grad_(requires_grad=False)
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.averaged = [a for a, p in zip(self.average.parameters(), self.network.parameters(), strict=True) if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, PEAK_RATE, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, foreach=True)
        self.progress = Progress()
        self.batches = BatchMaker(load_assets(work, "train"), SEED)
        self.judges = held_out_scenes(load_assets(work, "held_out"), 48, DEMO_CONFIG.image_size)

    def resume(self) -> None:
        path = self.work / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.progress = Progress(**state["progress"])
        else:
            print(f"taught where, loss {teach_where(self.network, SEED, steps=WHERE_STEPS):.3f}", flush=True)
            self.average.load_state_dict(self.network.state_dict())
        self.average.sam_prompt_encoder.image_size = DEMO_CONFIG.image_size

    def save(self) -> None:
        state = {"network": self.network.state_dict(), "average": self.average.state_dict(), "optimiser": self.optimiser.state_dict()}
        unfinished = self.work / "state.pt.part"
        torch.save({**state, "progress": asdict(self.progress)}, unfinished)
        unfinished.replace(self.work / "state.pt")

    def step(self) -> None:
        started_s = time.monotonic()
        generator = torch.Generator().manual_seed(SEED * 1_000_000 + self.progress.step)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.progress, self.total_s)
        phase = next(phase for phase in PHASES if self.progress.trained_s < phase.until * self.total_s)
        loss = batch_loss(self.network, self.batches.batch(self.progress.step, phase.size), phase, generator)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, GRADIENT_LIMIT)
        self.optimiser.step()
        decay = min(AVERAGE_DECAY, (1 + self.progress.step) / (10 + self.progress.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, [p.detach() for p in self.trained], 1 - decay)
        self.progress.step += 1
        self.progress.trained_s += min(LONGEST_STEP_S, time.monotonic() - started_s)
        self.progress.loss += 0.05 * (float(loss.detach()) - self.progress.loss)

    def measure(self) -> None:
        """Append the figures at full size to log.jsonl, keep the state, and the average as best.pt where it is the best so far."""
        figures = measure(self.average, self.judges)
        score = sum(figures.values()) / len(figures)
        rate = learning_rate(self.progress, self.total_s)
        line = {"time": time.strftime("%H:%M:%S"), **asdict(self.progress), "rate": rate, **figures}
        with (self.work / "log.jsonl").open("a") as log:
            log.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
        if score > self.progress.best:
            self.progress.best = score
            torch.save(self.average.state_dict(), self.work / "best.pt")
        self.save()

    def run(self) -> None:
        measured_s = time.monotonic()
        while self.progress.trained_s < self.total_s:
            self.step()
            if self.progress.step % 100 == 0:
                print(f"{self.progress.step} steps, {self.progress.trained_s:.0f} s, loss {self.progress.loss:.3f}", flush=True)
            if time.monotonic() - measured_s > MEASURE_EVERY_S:
                self.measure()
                measured_s = time.monotonic()
        self.measure()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the cached material, the state and the log")
    parser.add_argument("--hours", type=float, default=1.1, help="trained time the schedule is made for")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    (arguments.work / "pid").write_text(str(os.getpid()))
    trainer = Trainer(arguments.work, arguments.hours)
    trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
