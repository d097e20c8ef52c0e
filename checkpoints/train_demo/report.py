"""Every held-out figure of a checkpoint, with fixed seeds: what `make eval-demo` prints. The last line of stdout is JSON."""

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import torch

from checkpoints.train_demo.assets import MissingAssetsError, load_assets
from checkpoints.train_demo.evaluate import held_out_scenes, load_network, measure
from checkpoints.train_demo.evaluate_video import held_out_clips, measure_clips

PROMPTS = {"1_click": "1 click", "1_click_anywhere": "1 click anywhere", "3_clicks": "3 clicks", "box": "box"}
KINDS = {"shapes": "plain shapes", "clip_art": "drawings"}


def table(figures: dict[str, float]) -> str:
    """The figures of still pictures in Markdown, and their mean over the kinds."""
    lines = [f"| | {' | '.join(PROMPTS.values())} |", "|---|" + "---|" * len(PROMPTS)]
    for kind, name in KINDS.items():
        lines.append(" | ".join([f"| {name}", *(f"{figures[f'{kind}_{prompt}']:.2f}" for prompt in PROMPTS), ""]).rstrip())
    means = [sum(figures[f"{kind}_{prompt}"] for kind in KINDS) / len(KINDS) for prompt in PROMPTS]
    lines.append(" | ".join(["| mean", *(f"{mean:.2f}" for mean in means), ""]).rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path("checkpoints/demo/model.safetensors"))
    parser.add_argument("--scenes", type=int, default=400, help="scenes of each kind")
    parser.add_argument("--clips", type=int, default=60, help="clips of each kind")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    started_s = time.monotonic()
    try:
        held_out = load_assets(arguments.work, "held_out")
    except MissingAssetsError as error:
        sys.exit(str(error))
    network = load_network(arguments.weights)
    side_px = network.config.image_size
    pictures = measure(network, held_out_scenes(held_out, arguments.scenes, side_px))
    print(f"Mean IoU on {arguments.scenes} held-out pictures of each kind:\n\n{table(pictures)}\n", flush=True)
    videos = measure_clips(network, held_out_clips(held_out, arguments.clips, side_px))
    print(f"{arguments.clips} held-out clips of each kind:", ", ".join(f"{name} {value:.2f}" for name, value in videos.items()))
    print(
        json.dumps({**pictures, **videos, "scenes": arguments.scenes, "clips": arguments.clips, "s": round(time.monotonic() - started_s)})
    )


if __name__ == "__main__":
    main()
