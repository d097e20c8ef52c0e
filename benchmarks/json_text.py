"""What a brush mask costs as JSON: orjson beside the standard library, in one run. `python -m benchmarks.json_text`; one JSON line last."""

from __future__ import annotations

import json
import statistics
import time

import numpy as np
import orjson

N_BYTES = 250_000  # the brush RLE of a speckled mask at 2 megapixels; a clean one has a tenth


def median_ms(work, runs: int = 15) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return round(statistics.median(times), 2)


def main() -> None:
    region = {"value": {"rle": np.random.default_rng(0).integers(0, 256, N_BYTES).tolist()}}
    text = json.dumps(region).encode()
    figures = {
        "write_ms": {"orjson": median_ms(lambda: orjson.dumps(region)), "json": median_ms(lambda: json.dumps(region))},
        "read_ms": {"orjson": median_ms(lambda: orjson.loads(text)), "json": median_ms(lambda: json.loads(text))},
    }
    ratios = {name.removesuffix("_ms"): round(pair["json"] / pair["orjson"], 1) for name, pair in figures.items()}
    print(json.dumps({"benchmark": "json_text", "bytes": N_BYTES, **figures, "ratio": ratios}))


if __name__ == "__main__":
    main()
