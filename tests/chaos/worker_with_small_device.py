"""`sam2-backend worker` on a device that can be made small while it runs. Run as a program; the environment holds the settings.

The file DEVICE_FILE says how many embeddings the device has room for; without a number there is no limit. Beyond it torch is asked for more
memory than any machine has, and fails as it does where a device is full.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sam2_backend import embedding, embedding_cache, engine
from sam2_backend.devices import device_errors
from sam2_backend.settings import Settings
from sam2_backend.worker import run_worker

_TOO_MUCH = 1 << 60


_alive: list[weakref.ref[torch.Tensor]] = []


class SmallDevice(engine.Sam2Engine):
    """Demands room for what it makes."""

    def embed_many(self, images: Sequence[Any]) -> list[engine.ImageEmbedding]:
        _demand(len(images))
        return [_counted(embedding) for embedding in super().embed_many(images)]

    def decode_many(self, *arguments: Any, **options: Any) -> Any:
        _demand(0)
        return super().decode_many(*arguments, **options)


class CountedEmbedding(embedding.ImageEmbedding):
    """Demands room for what comes from a lower tier."""

    @classmethod
    def from_bytes(cls, *arguments: Any) -> embedding.ImageEmbedding:
        _demand(1)
        return _counted(embedding.ImageEmbedding.from_bytes(*arguments))


def _counted(made: embedding.ImageEmbedding) -> embedding.ImageEmbedding:
    """Whoever holds it: it counts until nobody does."""
    _alive[:] = [ref for ref in _alive if ref() is not None] + [weakref.ref(made.image)]
    return made


def _demand(more: int) -> None:
    try:
        room = int(Path(os.environ["DEVICE_FILE"]).read_text())
    except (OSError, ValueError):
        return
    if room == 0 or sum(ref() is not None for ref in _alive) + more > room:
        with device_errors():
            torch.empty(_TOO_MUCH, dtype=torch.uint8)


if __name__ == "__main__":
    engine.Sam2Engine = SmallDevice  # type: ignore[misc]
    embedding_cache.ImageEmbedding = CountedEmbedding  # type: ignore[misc]
    sys.exit(run_worker(Settings.from_env(os.environ)))
