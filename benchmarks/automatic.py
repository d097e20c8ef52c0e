"""Automatic mask generation beside Meta's generator on the same weights: how much faster, and are the masks the same?

In one process and one run, in turn, the median over photographs; seconds are of CPU time, so that a busy machine counts less. A mask of
the reference counts as found where one of ours overlaps it by an IoU of 0.99. With --large ours alone on a photograph of 4,000 x 3,000,
with its peak of memory. The table goes to stderr, one JSON object to stdout.

    python -m benchmarks.automatic [--model demo] [--repeats 3] [--points 32] [--threads 1] [--photos 4] [--large]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our worker does, before torch is imported

import numpy as np
import torch
from PIL import Image

from benchmarks.automatic_reference import ReferenceGenerator
from sam2_backend.automatic import AutomaticMask, everything
from sam2_backend.checkpoints import load
from sam2_backend.dataset_messages import EverythingOptions
from sam2_backend.engine import Sam2Engine
from sam2_backend.masks import mask_from_runs
from sam2_backend.settings import Settings

PHOTOS = sorted((Path(__file__).parents[1] / "backend/demo_images").glob("*.jpg"))
#: The shipped demo network is small: its logits are flatter and its scores lower than those of the published ones.
THRESHOLDS = {"demo": {"pred_iou_thresh": 0.45, "stability_score_thresh": 0.7, "stability_score_offset": 0.2}}
RANDOM_THRESHOLDS = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.6, "stability_score_offset": 0.05}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def found_again(theirs: list[tuple[np.ndarray, float]], ours: list[AutomaticMask]) -> list[float]:
    """For each mask of the reference the best IoU with one of ours."""
    masks = [mask_from_runs(mask.runs) for mask in ours]
    return [max((iou(mask, other) for other in masks), default=0.0) for mask, _ in theirs]


def photographs(count: int) -> list[np.ndarray]:
    return [np.array(Image.open(path).convert("RGB")) for path in PHOTOS[:count]]


def large_photograph() -> np.ndarray:
    return np.array(Image.open(PHOTOS[0]).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(engine: Sam2Engine, reference: ReferenceGenerator, options: EverythingOptions, photos: list[np.ndarray], repeats: int) -> dict:
    spent: dict[str, list[float]] = {"ours": [], "reference": []}
    overlaps: list[float] = []
    n_ours = 0
    for number, photo in enumerate(photos * repeats):
        started = time.process_time()
        ours = everything(engine, photo, options)
        between = time.process_time()
        theirs = reference.generate(photo)
        spent["ours"].append(between - started)
        spent["reference"].append(time.process_time() - between)
        if number < len(photos):
            overlaps += found_again(theirs, ours)
            n_ours += len(ours)
    medians = {name: round(statistics.median(values), 3) for name, values in spent.items()}
    return {
        "cpu_seconds": medians,
        "times_faster": round(medians["reference"] / medians["ours"], 2),
        "masks": {"ours": n_ours, "reference": len(overlaps)},
        "same_share": round(float(np.mean(np.array(overlaps) >= 0.99)), 4) if overlaps else None,
        "mean_iou": round(float(np.mean(overlaps)), 4) if overlaps else None,
    }


def on_a_large_photograph(engine: Sam2Engine, options: EverythingOptions) -> dict:
    photo, before = large_photograph(), peak_mib()
    started = time.process_time()
    found = everything(engine, photo, options)
    seconds = time.process_time() - started
    return {
        "size": "4000x3000",
        "cpu_seconds": round(seconds, 2),
        "masks": len(found),
        "peak_mib": round(peak_mib()),
        "before_mib": round(before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--large", action="store_true", help="4,000 x 3,000 instead, ours alone")
    arguments = parser.parse_args()
    settings = Settings(model=arguments.model, device="cpu", torch_threads=arguments.threads)
    engine = Sam2Engine.load(settings)
    thresholds = THRESHOLDS.get(arguments.model, RANDOM_THRESHOLDS if arguments.model.startswith("random:") else {})
    options = EverythingOptions(points_per_side=arguments.points, **thresholds)
    engine.warm_up()
    result = {"model": engine.model_version, "points_per_side": arguments.points, **thresholds, "threads": arguments.threads}
    result |= {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count()}
    if arguments.large:
        result |= on_a_large_photograph(engine, options)
    else:
        reference = ReferenceGenerator(load(settings), options)
        result |= compare(engine, reference, options, photographs(arguments.photos), arguments.repeats)
    for name, value in result.items():
        print(f"{name:>16}  {value}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
