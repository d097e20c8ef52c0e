"""A network compiled by torch for the shapes of clicks, before the worker is ready; every other shape runs as it is.

Nothing is compiled on a request: a shape that was not met at the start would otherwise cost a minute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sam2_backend.network import DecoderOutput, FeatureMaps, Sam2Network

log = logging.getLogger(__name__)

#: (points with the corners of a box, whether there is a mask): a first click or mask, a box, and up to three corrections.
CLICK_SHAPES = ((1, False), (2, False), (1, True), (2, True), (3, True), (4, True))


class CompiledNetwork:
    """`encode` and `decode` of a network, compiled for the shapes that were asked for.

    Args:
        network: Folded, on its device.
        dtype: Of the images that will be encoded.
        backend: Of torch.compile.
    """

    def __init__(self, network: Sam2Network, dtype: torch.dtype, backend: str = "inductor") -> None:
        self._network, self._dtype, self._backend = network, dtype, backend
        self._device = network.no_mem_embed.device
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def compile(self, *, encoder: bool, click_shapes: tuple[tuple[int, bool], ...] = CLICK_SHAPES) -> None:
        """Compile, saying in the log how far it is. Where torch cannot compile here, one line says so and all runs as it is."""
        side = self._network.config.image_size
        steps: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
        if encoder:
            images = torch.zeros(1, 3, side, side, dtype=self._dtype, device=self._device)
            steps.append(("the image encoder", self._network.encode, (images,)))
        for n_points, has_mask in click_shapes:
            name = f"prompts of {n_points} points{' and a mask' if has_mask else ''}"
            steps.append((name, self._network.decode, self._prompt(n_points, has_mask=has_mask)))
        for number, (name, function, args) in enumerate(steps, 1):
            started = time.perf_counter()
            try:
                self._add(function, args)
            except Exception as error:  # the compiler's errors have no common root
                self._compiled.clear()
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                log.warning("torch cannot compile here (%s: %s); the model runs uncompiled", type(error).__name__, reason)
                return
            log.info("compiled %s (%d of %d) in %.0f s", name, number, len(steps), time.perf_counter() - started)

    def encode(self, images: Tensor) -> FeatureMaps:
        """See `Sam2Network.encode`."""
        maps: FeatureMaps = self._call(self._network.encode, (images,))
        return maps

    def decode(self, features: FeatureMaps, points_xy: Tensor, labels: Tensor, mask_logits: Tensor | None = None) -> DecoderOutput:
        """See `Sam2Network.decode`."""
        out: DecoderOutput = self._call(self._network.decode, (features, points_xy, labels, mask_logits))
        return out

    def _add(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        mode = "reduce-overhead" if self._device.type == "cuda" and self._backend == "inductor" else None
        compiled = torch.compile(function, dynamic=False, mode=mode, backend=self._backend)
        for _ in range(3):  # with CUDA graphs the second call records and the third replays
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            compiled(*args)
        self._compiled[_shape_of(function, args)] = compiled

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        compiled = self._compiled.get(_shape_of(function, args))
        if compiled is None:
            return function(*args)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        out = compiled(*args)
        # CUDA graphs write their next results into the same memory.
        return type(out)(*(t.clone() for t in out)) if isinstance(out, DecoderOutput) else tuple(t.clone() for t in out)

    def _prompt(self, n_points: int, *, has_mask: bool) -> tuple[Any, ...]:
        dim, side = self._network.config.hidden_dim, self._network.config.image_size
        sizes = ((dim // 8, side // 4), (dim // 4, side // 8), (dim, side // 16))
        features = tuple(
            torch.zeros(1, channels, n, n, device=self._device).contiguous(memory_format=torch.channels_last) for channels, n in sizes
        )
        labels = torch.ones(1, n_points, dtype=torch.long, device=self._device)
        mask = torch.zeros(1, 1, side // 4, side // 4, device=self._device) if has_mask else None
        return features, torch.zeros(1, n_points, 2, device=self._device), labels, mask


def _shape_of(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    shapes = [tuple(a.shape) if isinstance(a, Tensor) else a if a is None else tuple(tuple(t.shape) for t in a) for a in args]
    return (getattr(function, "__name__", ""), *shapes)
