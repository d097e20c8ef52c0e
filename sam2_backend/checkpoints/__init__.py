"""Checkpoints: which there are, how to get one, and the weights in it."""

from sam2_backend.checkpoints.catalog import MODELS, ModelSpec
from sam2_backend.checkpoints.download import fetch
from sam2_backend.checkpoints.loading import RANDOM_CONFIGS, Checkpoint, choose, load, verify

__all__ = ["MODELS", "RANDOM_CONFIGS", "Checkpoint", "ModelSpec", "choose", "fetch", "load", "verify"]
