"""Write the best weights of a course as the checkpoint that ships: fp16, Meta's tensor names, the sizes in the file's metadata."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints.train_demo.configuration import DEMO_CONFIG
from sam2_backend.network import Sam2Network

ABOUT = "Demo and test weights of SAM 2.1's architecture in small, trained by this project on drawn scenes and clips. Apache-2.0."


def exported(network: Sam2Network) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors as fp16, and the metadata that the product's loader reads the sizes from."""
    halves = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    return halves, {"format": "pt", "about": ABOUT, "config": json.dumps(network.config.to_json())}


def export(weights: Path, to: Path) -> None:
    """WEIGHTS is a state dict written by a course; raises RuntimeError where it does not fit the network."""
    network = Sam2Network(DEMO_CONFIG)
    network.load_state_dict(torch.load(weights, weights_only=True))
    tensors, metadata = exported(network)
    to.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, to, metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="video-best.pt (or images-best.pt) of the work folder")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    export(arguments.weights, arguments.to)
    print(f"{arguments.to}: {arguments.to.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
