"""What other servers of SAM 2 do under load: one process, one lock around the network, embeddings in a dictionary of the process.

Its network, masks and run lengths are ours, so what differs is what is done around them. It encodes on the first click, and only then: an
opened task is answered without.

    python -m benchmarks.single_lock PORT       (the settings come from the environment)
"""

from __future__ import annotations

import os
import sys
import threading
import time
import urllib.request
from collections import OrderedDict

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our worker does: the comparison is of what is done, not of this

import numpy as np
import torch
from flask import Flask, jsonify, request

from backend.brush_rle import encode_mask
from sam2_backend.engine import Sam2Engine
from sam2_backend.images import load_rgb
from sam2_backend.settings import Settings

_MOST_EMBEDDINGS = 256


def create_app(settings: Settings) -> Flask:
    torch.set_num_threads(settings.torch_threads or os.cpu_count() or 1)
    engine = Sam2Engine.load(settings)
    engine.warm_up()
    lock, embeddings, app = threading.Lock(), OrderedDict(), Flask(__name__)

    def embedded(url: str):
        if url not in embeddings:
            with urllib.request.urlopen(url) as response:
                image = load_rgb(response.read(), "upright", settings.media_max_pixels)
            embeddings[url] = engine.embed(image)
            if len(embeddings) > _MOST_EMBEDDINGS:
                embeddings.popitem(last=False)
        return embeddings[url]

    @app.get("/health")
    def health():
        return jsonify(status="UP")

    @app.post("/predict")
    def predict():
        body = request.get_json()
        context = body["params"]["context"]
        if not context:
            return jsonify(results=[{"result": []}])
        regions = context["result"]
        width, height = regions[0]["original_width"], regions[0]["original_height"]
        with lock:
            started = time.perf_counter()
            embedding = embedded(body["tasks"][0]["data"]["image"])
            embed_ms = (time.perf_counter() - started) * 1e3
            found = engine.decode(
                embedding,
                points_xy_px=np.array([(r["value"]["x"] * width / 100, r["value"]["y"] * height / 100) for r in regions]),
                is_positive=np.array([bool(r["is_positive"]) for r in regions]),
                size_hw=(height, width),
                multimask=len(regions) == 1,
            )
            mask = engine.upsample(found.logits[0], (height, width))
        answer = jsonify(
            results=[{"result": [{"value": {"format": "rle", "rle": list(encode_mask(mask))}}], "score": float(found.scores[0])}]
        )
        answer.headers["Server-Timing"] = f"embed;dur={embed_ms:.2f}"
        return answer

    return app


if __name__ == "__main__":
    create_app(Settings.from_env(os.environ)).run("127.0.0.1", int(sys.argv[1]), threaded=True)
