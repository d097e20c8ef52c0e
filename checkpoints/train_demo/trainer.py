"""The loop that both courses share: steps, a running average of the weights, measuring, and a state file to go on from."""

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.train_demo.optimisers import optimisers, share_of
from sam2_backend.network import NetworkConfig, Sam2Network

LAST_RATE_SHARE, WARM_UP_STEPS = 0.01, 150
GRADIENT_LIMIT, AVERAGE_DECAY = 1.0, 0.998
LONGEST_STEP_S = 10.0  # a longer step means that the process was paused


@dataclass(slots=True)
class Progress:
    step: int = 0
    trained_s: float = 0.0
    best: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Course:
    """What is taught.

    Attributes:
        name: Of its files in the work folder.
        seed: Of everything that is drawn.
        start: Makes the network to begin with.
        shares: Which parameters learn, by the beginning of their names, and their part of the learning rate.
        peak_rate: The learning rate after the warm-up.
        loss: Of (network, step, share of the time that is done, generator).
        measure: Held-out figures of a network; the mean of them decides which weights are the best.
    """

    name: str
    seed: int
    start: Callable[[], Sam2Network]
    shares: Mapping[str, float]
    peak_rate: float
    loss: Callable[[Sam2Network, int, float, torch.Generator], Tensor]
    measure: Callable[[Sam2Network], dict[str, float]]
    measure_every_s: float = 300.0

    def file(self, work: Path, what: str) -> Path:
        return work / f"{self.name}-{what}"


def learning_rate(progress: Progress, total_s: float, peak: float) -> float:
    """Linear warm-up by steps, then a cosine over the trained time."""
    warm = min(1.0, (progress.step + 1) / WARM_UP_STEPS)
    done = torch.tensor(min(1.0, progress.trained_s / total_s))
    return warm * peak * (LAST_RATE_SHARE + (1 - LAST_RATE_SHARE) * 0.5 * (1 + float(torch.cos(done * torch.pi))))


class Trainer:
    """Owns the network, its running average, the optimisers and the state file. fp32 on a CPU, bf16 where there is a GPU."""

    def __init__(self, course: Course, work: Path, hours: float) -> None:
        self.course, self.work, self.total_s = course, work, hours * 3600
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.progress = Progress()
        state = self._stored()
        self.network = course.start() if state is None else Sam2Network(NetworkConfig.from_json(state["config"]))
        self.average = Sam2Network(self.network.config).eval().requires_grad_(requires_grad=False)
        self.network.load_state_dict(self.network.state_dict() if state is None else state["network"])
        self.average.load_state_dict(self.network.state_dict() if state is None else state["average"])
        self.network, self.average = self.network.train().to(self.device), self.average.to(self.device)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(share_of(name, course.shares) > 0)
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.averaged = [a for a, p in zip(self.average.parameters(), self.network.parameters(), strict=True) if p.requires_grad]
        self.optimisers = optimisers(self.network, course.peak_rate, course.shares)
        if state is not None:
            self.progress = Progress(**state["progress"])
            for optimiser, stored in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(stored)

    def _stored(self) -> dict[str, Any] | None:
        path = self.course.file(self.work, "state.pt")
        return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None

    def save(self) -> None:
        """Written beside the old state and renamed, so that a stop in between loses nothing."""
        state = {"config": self.network.config.to_json(), "network": self.network.state_dict(), "average": self.average.state_dict()}
        state |= {"optimisers": [optimiser.state_dict() for optimiser in self.optimisers], "progress": asdict(self.progress)}
        path = self.course.file(self.work, "state.pt")
        unfinished = path.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(path)

    def step(self) -> None:
        started_s = time.monotonic()
        generator = torch.Generator().manual_seed(self.course.seed * 1_000_000 + self.progress.step)
        rate = learning_rate(self.progress, self.total_s, self.course.peak_rate)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"]
            optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.course.loss(self.network, self.progress.step, self.progress.trained_s / self.total_s, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, GRADIENT_LIMIT)
        for optimiser in self.optimisers:
            optimiser.step()
        decay = min(AVERAGE_DECAY, (1 + self.progress.step) / (10 + self.progress.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, [p.detach() for p in self.trained], 1 - decay)
        self.progress.step += 1
        self.progress.trained_s += min(LONGEST_STEP_S, time.monotonic() - started_s)
        self.progress.loss += max(0.02, 1 / self.progress.step) * (float(loss.detach()) - self.progress.loss)

    def measure(self) -> None:
        """Append the figures at full size to the log, keep the state, and the average as the best where it is the best so far."""
        figures = self.course.measure(copy.deepcopy(self.average).cpu())
        score = sum(figures.values()) / len(figures)
        rate = learning_rate(self.progress, self.total_s, self.course.peak_rate)
        line = {"time": time.strftime("%H:%M:%S"), **asdict(self.progress), "rate": rate, **figures}
        with self.course.file(self.work, "log.jsonl").open("a") as log:
            log.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
        if score > self.progress.best:
            self.progress.best = score
            torch.save({name: t.cpu() for name, t in self.average.state_dict().items()}, self.course.file(self.work, "best.pt"))
        self.save()

    def run(self) -> None:
        """Until the time is up; progress on stdout."""
        measured_s = time.monotonic()
        while self.progress.trained_s < self.total_s:
            self.step()
            if self.progress.step % 50 == 0:
                print(f"{self.progress.step} steps, {self.progress.trained_s:.0f} s, loss {self.progress.loss:.3f}", flush=True)
            if time.monotonic() - measured_s > self.course.measure_every_s:
                self.measure()
                measured_s = time.monotonic()
        self.measure()
