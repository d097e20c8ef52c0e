"""What Label Studio's own SAM 2 example does with a click, as a server: the image is read and encoded on every click, the mask is
written by label-studio-converter. Its network is ours, on the same weights, which is a little faster than the one it uses.

Started by click.py, in a process of its own: python -m benchmarks.peer PORT
"""

from __future__ import annotations

import io
import os
import sys
import urllib.request

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our worker does: the comparison is of what is done, not of this

import numpy as np
import torch
from flask import Flask, jsonify, request
from label_studio_converter import brush
from PIL import Image, ImageOps

from sam2_backend.engine import Sam2Engine
from sam2_backend.settings import Settings


def create_app(settings: Settings) -> Flask:
    torch.set_num_threads(settings.torch_threads or os.cpu_count() or 1)
    engine = Sam2Engine.load(settings)
    app = Flask(__name__)

    @app.get("/health")
    def health():
        return jsonify(status="UP")

    @app.post("/predict")
    def predict():
        body = request.get_json()
        region = body["params"]["context"]["result"][0]
        width, height = region["original_width"], region["original_height"]
        with urllib.request.urlopen(body["tasks"][0]["data"]["image"]) as response:
            image = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(response.read()))).convert("RGB"))
        points = [(r["value"]["x"] * width / 100, r["value"]["y"] * height / 100) for r in body["params"]["context"]["result"]]
        signs = [bool(r.get("is_positive", True)) for r in body["params"]["context"]["result"]]
        embedding = engine.embed(image)
        found = engine.decode(
            embedding,
            points_xy_px=np.array(points),
            is_positive=np.array(signs),
            size_hw=(height, width),
            multimask=True,
        )
        masks = [engine.upsample(logits, (height, width)) for logits in found.logits]  # the example upsamples all candidates
        rle = brush.mask2rle(masks[0].astype(np.uint8) * 255)
        return jsonify(results=[{"result": [{"value": {"format": "rle", "rle": rle}}], "score": float(found.scores[0])}])

    return app


if __name__ == "__main__":
    create_app(Settings.from_env(os.environ)).run("127.0.0.1", int(sys.argv[1]), threaded=True)
