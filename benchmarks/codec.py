"""How long do masks take on their way to Label Studio and back, compared with label-studio-converter 0.0.59?

One blobby object. Ours and the reference take turns in one run, on the same mask, after their outputs have been found equal.
`encode` and `decode` go from the mask (H, W) bool to the brush RLE and back; on the way of a click, ours starts from the run lengths
that the worker sends (`encode_runs`). `words` is the reference's own `decode_rle`, without its last step to a mask.
Caveat: one object and one machine; the time of both grows with the length of the outline, ours hardly with the pixels.

    python -m benchmarks.codec [--size 4000x3000] [--repeats 15]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from label_studio_converter import brush
from PIL import Image

from backend.brush_rle import decode_mask, decode_words, encode_mask, encode_runs
from backend.mask_png import png_from_mask
from sam2_backend.masks import clean, mask_from_runs, runs_from_mask
from sam2_backend.outlines import polygons_xy_px


def blob(width: int, height: int) -> np.ndarray:
    """An object with a ragged outline in the middle of the image, about a fifth of it; (H, W) bool."""
    y, x = np.mgrid[:height, :width].astype(np.float32) - np.array([height / 2, width / 2], np.float32)[:, None, None]
    angle = np.arctan2(y, x)
    ragged = 1 + 0.13 * np.sin(5 * angle) + 0.045 * np.sin(23 * angle) + 0.017 * np.sin(101 * angle)
    return np.hypot(y, x) < 0.3 * min(width, height) * ragged


def reference_encode(mask: np.ndarray) -> list[int]:
    return brush.mask2rle(mask.astype(np.uint8) * 255)


def reference_decode(rle: list[int], size_hw: tuple[int, int]) -> np.ndarray:
    return brush.decode_rle(rle).reshape(*size_hw, 4)[:, :, 3] > 0


def rgba_png(mask: np.ndarray) -> bytes:
    """The same picture as everybody writes it."""
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[mask] = 255
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    return buffer.getvalue()


def pairs(mask: np.ndarray) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Ours and the peer's for each question; their outputs are the same."""
    rle = encode_mask(mask)
    as_list = list(rle)  # as it comes out of JSON, and as the reference makes it
    return {
        "encode": (lambda: list(encode_mask(mask)), lambda: reference_encode(mask)),
        "decode": (lambda: decode_mask(as_list, mask.shape), lambda: reference_decode(as_list, mask.shape)),
        "words": (lambda: decode_words(as_list), lambda: brush.decode_rle(as_list)),
        "png": (lambda: png_from_mask(mask), lambda: rgba_png(mask)),
    }


def assert_alike(name: str, ours: Any, peers: Any) -> None:
    if name == "png":
        ours, peers = (np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")) for png in (ours, peers))
    if not np.array_equal(ours, peers):
        raise SystemExit(f"{name}: ours differs from the reference")


def milliseconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median of each call; the calls take turns, so that a busy machine is busy for all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: round(statistics.median(taken[1:]), 3) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="4000x3000", help="width x height")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))

    mask = blob(width, height)
    runs = runs_from_mask(mask)
    compared: dict[str, dict[str, float]] = {}
    print(f"{width} x {height}, {mask.mean():.0%} mask, {len(runs.counts) // 4} runs; medians of {args.repeats}, in ms")
    print(f"{'':10}{'ours':>9}{'peer':>9}{'ratio':>8}")
    for name, (ours, peers) in pairs(mask).items():
        assert_alike(name, ours(), peers())
        ms = milliseconds({"ours": ours, "peer": peers}, args.repeats)
        compared[name] = {"ours_ms": ms["ours"], "peer_ms": ms["peer"], "ratio": round(ms["peer"] / ms["ours"], 1)}
        print(f"{name:10}{ms['ours']:9.2f}{ms['peer']:9.2f}{compared[name]['ratio']:8.1f}")

    alone = milliseconds(
        {
            "runs_from_mask": lambda: runs_from_mask(mask),
            "mask_from_runs": lambda: mask_from_runs(runs),
            "encode_runs": lambda: encode_runs(runs),
            "polygon": lambda: polygons_xy_px(mask),
            "clean": lambda: clean(mask, 100, 100),
        },
        args.repeats,
    )
    print("\n".join(f"{name:16}{ms:9.2f}" for name, ms in alone.items()))
    machine = {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version(), "numpy": np.__version__}
    sizes = {"rle_bytes": len(encode_runs(runs)), "png_bytes": len(png_from_mask(mask))}
    print(json.dumps({"benchmark": "codec", "size": args.size, "compared": compared, "ours_ms": alone, **sizes, "machine": machine}))


if __name__ == "__main__":
    main()
