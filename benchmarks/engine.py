"""How fast is the engine, against transformers' unmodified SAM 2 on the same weights, and against what a naive server does with a click?

Everything in one process and one run, asked in turn, each time the median; the first click from process start in processes of their own.
The naive server decodes the JPEG, makes the square, encodes, decodes and upsamples all three candidates on every click, on transformers.
Rows go to stderr as they are made, one JSON object to stdout. On a machine that others use too, `--clock cpu` with one thread counts the
processor time of this process in place of the time that passed.

    python -m benchmarks.engine [--model random:sam2.1_hiera_tiny] [--repeats 5] [--threads 2] [--clock wall|cpu] [--size 1920x1080]
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our worker does, before torch is imported

import numpy as np
import psutil
from PIL import Image

from benchmarks.click import photograph

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLICK = "first-click"


class Stopwatch:
    """Medians of what is done in turn."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._now = time.process_time if options.clock == "cpu" else time.perf_counter
        self._wanted = options.rows
        self.rows: dict[str, dict[str, float]] = {}

    def row(self, title: str, what: dict[str, Callable[[], object]], repeats: int) -> None:
        """Do each, one after the other in every round; the first round warms up and does not count."""
        if self._wanted and title not in self._wanted:
            return
        spent: dict[str, list[float]] = {name: [] for name in what}
        for number in range(repeats + 1):
            for name, work in what.items():
                started = self._now()
                work()
                if number:
                    spent[name].append((self._now() - started) * 1e3)
        self.rows[title] = {name: round(statistics.median(values), 1) for name, values in spent.items()}
        print(title, self.rows[title], f"load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)


def rgb_of(jpeg: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))


class Theirs:
    """transformers, unmodified, in inference mode."""

    def __init__(self, checkpoint) -> None:
        import torch

        from benchmarks.reference import reference_of

        self.torch, self.side = torch, checkpoint.config.image_size
        self.model = reference_of(checkpoint.state_dict, checkpoint.config)

    def pixels(self, image: np.ndarray):
        """As transformers' image processor, which is not used here because it needs torchvision."""
        torch = self.torch
        square = torch.nn.functional.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None], (self.side, self.side), mode="bilinear", antialias=True
        )
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return (square.float() / 255 - mean) / std

    def encode(self, pixels):
        with self.torch.inference_mode():
            return self.model.get_image_embeddings(pixels)

    def decode(self, maps, points_xy: np.ndarray):
        """Points (n, 2) in model pixels, one object each, in one call."""
        with self.torch.inference_mode():
            points = self.torch.tensor(points_xy, dtype=self.torch.float32)[None, :, None]
            return self.model(
                image_embeddings=maps, input_points=points, input_labels=self.torch.ones(points.shape[:3], dtype=int), multimask_output=True
            )

    def naive_click(self, jpeg: bytes, point_xy: np.ndarray) -> np.ndarray:
        image = rgb_of(jpeg)
        out = self.decode(self.encode(self.pixels(image)), point_xy[None])
        full = self.torch.nn.functional.interpolate(out.pred_masks[0], image.shape[:2], mode="bilinear", align_corners=False) > 0
        return full[0, int(out.iou_scores[0, 0].argmax())].numpy()


def first_click(options: argparse.Namespace) -> None:
    """In a process of its own: from nothing to a mask. Prints the resident memory; the parent has the clock."""
    jpeg = photograph(1, size_of(options))
    import torch

    from sam2_backend import checkpoints
    from sam2_backend.settings import Settings

    torch.set_num_threads(options.threads)
    settings = Settings(model=options.model, device="cpu", torch_threads=options.threads)
    if options.only == "ours":
        from sam2_backend.engine import Sam2Engine

        engine = Sam2Engine.load(settings)
        image = rgb_of(jpeg)
        found = engine.decode(engine.embed(image), **click_at(np.array([200.0, 300.0]), image.shape[:2]))
        engine.runs(found.logits[0], image.shape[:2])
    else:
        checkpoint = checkpoints.load(settings)
        theirs = Theirs(checkpoint)
        del checkpoint
        theirs.naive_click(jpeg, np.array([200.0, 300.0]))
    gc.collect()
    memory = psutil.Process().memory_info().rss
    print(json.dumps({CLICK: True, "resident_mib": round(memory / 2**20)}), flush=True)


def measured_first_clicks(options: argparse.Namespace) -> dict:
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    resident_mib: dict[str, int] = {}
    for _ in range(2):
        for only, spent in seconds.items():
            command = [sys.executable, "-m", "benchmarks.engine", "--only", only, "--model", options.model, "--size", options.size]
            started = now(options)
            process = subprocess.run([*command, "--threads", str(options.threads)], stdout=subprocess.PIPE, check=True, text=True)
            spent.append(now(options) - started)
            resident_mib[only] = json.loads(process.stdout.splitlines()[-1])["resident_mib"]
    return {"first_click_s": {name: round(min(values), 2) for name, values in seconds.items()}, "resident_mib": resident_mib}


def now(options: argparse.Namespace) -> float:
    if options.clock == "wall":
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def click_at(point_xy_px: np.ndarray, size_hw: tuple[int, ...]) -> dict:
    return {"points_xy_px": point_xy_px[None], "is_positive": np.array([True]), "size_hw": size_hw, "multimask": True}


def size_of(options: argparse.Namespace) -> tuple[int, int]:
    width, height = options.size.split("x")
    return int(width), int(height)


def measure(options: argparse.Namespace) -> dict:
    import torch

    from sam2_backend import checkpoints
    from sam2_backend.engine import ObjectPrompt, Sam2Engine
    from sam2_backend.messages import ImagePrompt, MaskOptions, Point
    from sam2_backend.process_memory import keep_freed_memory
    from sam2_backend.refinement import LogitsCache, segment
    from sam2_backend.settings import Settings

    torch.set_num_threads(options.threads)
    if options.as_worker:
        keep_freed_memory()
    checkpoint = checkpoints.load(Settings(model=options.model))
    engine = Sam2Engine(checkpoint, torch.device("cpu"))
    bf16 = Sam2Engine(checkpoint, torch.device("cpu"), torch.bfloat16)
    theirs, n = Theirs(checkpoint), options.repeats
    width, height = size_of(options)
    jpeg = photograph(1, (width, height))
    image = rgb_of(jpeg)
    pixels, embedding = theirs.pixels(image), engine.embed(image)
    maps = [*embedding.maps[:2], embedding.image + engine.network.no_mem_embed.view(1, -1, 1, 1)]
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, engine.image_size, (64, 2))
    to_px = np.array([width, height]) / engine.image_size
    prompts = [(embedding, ObjectPrompt(p[None] * to_px, np.array([True]), (height, width), multimask=True)) for p in xy]

    def our_click() -> None:
        x, y = rng.uniform(0.1, 0.9, 2) * [width, height]
        [step] = segment(engine, embedding, "image", [ImagePrompt("a", (Point(x, y),))], (height, width), MaskOptions(), LogitsCache(9))
        engine.runs(step.logits, (height, width))

    large = rgb_of(photograph(2, (4000, 3000)))
    logits = engine.decode(embedding, **click_at(np.array([500.0, 500.0]), (height, width))).logits[0]
    watch = Stopwatch(options)
    watch.row("decode_1_ms", {"ours": lambda: engine.decode_many(prompts[:1]), "transformers": lambda: theirs.decode(maps, xy[:1])}, 4 * n)
    watch.row("square_of_12_megapixels_ms", {"ours": lambda: engine.square(large), "in float": lambda: in_float(large)}, 2 * n)
    watch.row("logits_to_runs_at_12_megapixels_ms", {"ours": lambda: engine.runs(logits, (3000, 4000))}, 4 * n)
    watch.row(
        "encode_ms",
        {"ours": lambda: engine.embed(image), "ours bf16": lambda: bf16.embed(image), "transformers": lambda: theirs.encode(pixels)},
        n,
    )
    eight = {
        "ours": lambda: engine.decode_many(prompts[:8], exact=False),
        "ours, bytes of one at a time": lambda: engine.decode_many(prompts[:8]),
        "transformers": lambda: [theirs.decode(maps, p[None]) for p in xy[:8]],
        "transformers in one call": lambda: theirs.decode(maps, xy[:8]),
    }
    watch.row("decode_8_ms", eight, n)
    watch.row("warm_click_ms", {"ours": our_click, "naive": lambda: theirs.naive_click(jpeg, xy[0])}, max(2, n // 2))
    sixty_four = {
        "ours": lambda: engine.decode_many(prompts, exact=False),
        "ours, bytes of one at a time": lambda: engine.decode_many(prompts),
        "transformers": lambda: [theirs.decode(maps, p[None]) for p in xy],
    }
    watch.row("decode_64_ms", sixty_four, max(2, n // 2))
    return watch.rows


def in_float(image: np.ndarray) -> object:
    import torch

    channels = torch.from_numpy(image).permute(2, 0, 1)[None].float().div_(255)
    return torch.nn.functional.interpolate(channels, (1024, 1024), mode="bilinear", antialias=True)


def run(options: argparse.Namespace) -> dict:
    started_load = os.getloadavg()[0]
    found = measure(options)
    if not options.rows or "first_click_s" in options.rows:
        found |= measured_first_clicks(options)
    ratios = {
        title: round((row.get("naive") or row["transformers"]) / row["ours"], 2)
        for title, row in found.items()
        if row.keys() & {"naive", "transformers"} and title != "resident_mib"
    }
    import torch
    import transformers

    return {
        "benchmark": "engine",
        "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "threads": options.threads,
        "as_worker": options.as_worker,
        "clock": options.clock,
        "load": [round(started_load, 1), round(os.getloadavg()[0], 1)],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": options.model,
        "image": options.size,
        **found,
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:sam2.1_hiera_tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument(
        "--as-worker", action="store_true", help="keep freed memory, as our worker does; in this process it helps both sides"
    )
    parser.add_argument("--rows", nargs="*", help="only these, by their names in the JSON object")
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--only", choices=("ours", "transformers"), help="one first click, for the parent")
    options = parser.parse_args()
    if options.only:
        first_click(options)
    else:
        print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
