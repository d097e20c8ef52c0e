"""Write the best weights so far as the checkpoint that ships: fp16, Meta's tensor names, the sizes in the file's metadata."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from checkpoints.train_demo.configuration import DEMO_CONFIG
from sam2_backend.network import Sam2Network

ABOUT = "Demo and test weights of SAM 2.1's architecture in small, trained by this project on drawn scenes; memory (video) untrained. Apache-2.0."


def export(weights: Path, to: Path) -> None:
    """WEIGHTS is a state dict written by `train`; raises RuntimeError where it does not fit the network."""
    network = Sam2Network(DEMO_CONFIG)
    network.load_state_dict(torch.load(weights, weights_only=True))
    halves = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    to.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, to, metadata={"format": "pt", "about": ABOUT, "config": json.dumps(DEMO_CONFIG.to_json())})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    export(arguments.work / "best.pt", arguments.to)
    print(f"{arguments.to}: {arguments.to.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
