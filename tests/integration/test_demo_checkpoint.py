"""What the checkpoint that ships promises, through HTTP, queue and worker, and through the tracker: real masks of things drawn here."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import socket

import cv2
import numpy as np
import pytest
import requests
import torch
from PIL import Image

from backend.config_generator import generate
from backend.supervisor import Stack
from sam2_backend.engine import Sam2Engine
from sam2_backend.settings import Settings
from sam2_backend.tracker import Tracker, TrackerPrompt

LABEL_CONFIG = generate(["Thing"], "bitmask")
SIZE_HW = (384, 512)
MODEL = "demo"
GOOD_IOU = 0.8
TASKS = itertools.count(1000)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("stack")
    settings = dataclasses.replace(Settings(), port=port, data_dir=folder, model=MODEL, torch_threads=1)
    with Stack(settings, log_dir=folder / "logs") as running:
        running.wait_until_ready(120)
        yield running


def surface(size_hw, seed=3):
    """A grainy, slowly changing background (H, W, 3) float."""
    height, width = size_hw
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([150 + 50 * columns / width, 170 + 40 * rows / height, 190 - 40 * columns / width], -1)
    return ramp + np.random.default_rng(seed).normal(0, 6, ramp.shape)


def pasted(image, outline_xy, color):
    """The filled outline on the image, and its mask (H, W) bool."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(outline_xy).astype(np.int32)], 1)
    return np.where(mask[..., None] > 0, np.array(color) + np.random.default_rng(1).normal(0, 4, image.shape), image), mask > 0


def ring(center_xy, radius_x, radius_y, corners=60, inner=1.0, turn=0.0):
    angles = np.arange(corners) * 2 * np.pi / corners
    reach = np.where(np.arange(corners) % 2, inner, 1.0)
    around = np.stack([np.cos(angles + turn) * reach * radius_x, np.sin(angles + turn) * reach * radius_y], 1)
    return np.array(center_xy) + around


#: Large, and of a colour of their own; how the checkpoint does with less, its evaluation tells.
THINGS = {
    "disc": (ring((300, 180), 80, 80), (200, 60, 40)),
    "flat ellipse": (ring((230, 240), 140, 60), (30, 120, 50)),
    "rectangle": (np.array([(140, 90), (330, 90), (330, 270), (140, 270)]), (30, 50, 130)),
    "tilted square": (ring((200, 200), 100, 100, corners=4, turn=0.5), (230, 200, 30)),
    "hexagon": (ring((340, 220), 90, 90, corners=6), (120, 30, 120)),
}


def shown(image):
    buffer = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def click(xy_px, *, positive=True):
    height, width = SIZE_HW
    value = {"x": 100 * xy_px[0] / width, "y": 100 * xy_px[1] / height, "width": 0.3, "keypointlabels": ["Thing"]}
    common = {"original_width": width, "original_height": height, "image_rotation": 0, "to_name": "image", "from_name": "point"}
    return common | {"id": f"click-{xy_px}", "type": "keypointlabels", "is_positive": positive, "value": value}


def mask_of(stack, image, *regions, task=None):
    """(H, W) bool of the one prediction for these regions; on a task of its own, which remembers no earlier mask, unless one is named."""
    body = {"tasks": [{"id": task or next(TASKS), "data": {"image": shown(image)}}], "project": "1.1", "label_config": LABEL_CONFIG}
    answer = requests.post(f"{stack.url}/predict", json=body | {"params": {"context": {"result": list(regions)}}}, timeout=120)
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    assert prediction["model_version"].startswith("demo@")
    (region,) = prediction["result"]
    png = base64.b64decode(region["value"]["imageDataURL"].split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[..., 3] > 127


def iou(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


def middle(mask):
    ys, xs = np.nonzero(mask)
    return float(xs.mean()), float(ys.mean())


@pytest.mark.parametrize("name", THINGS)
def test_a_click_on_a_thing_gives_the_thing(stack, name):
    image, truth = pasted(surface(SIZE_HW), *THINGS[name])
    assert iou(mask_of(stack, image, click(middle(truth))), truth) >= GOOD_IOU


@pytest.fixture(scope="module")
def two_things():
    image, left = pasted(surface(SIZE_HW), ring((140, 190), 70, 70), (200, 60, 40))
    image, right = pasted(image, ring((370, 190), 80, 70, corners=4, turn=np.pi / 4), (30, 50, 130))
    return image, left, right


def test_clicks_on_two_things_give_two_masks(stack, two_things):
    image, left, right = two_things
    masks = [mask_of(stack, image, click(middle(truth))) for truth in (left, right)]
    assert [iou(mask, truth) >= GOOD_IOU for mask, truth in zip(masks, (left, right), strict=True)] == [True, True]
    assert not (masks[0] & masks[1]).any()


def test_a_negative_click_removes_what_it_touches(stack, two_things):
    image, left, right = two_things
    clicks = [click(middle(left)), click(middle(right))]
    both = mask_of(stack, image, *clicks, task=1)
    assert iou(both, left | right) >= GOOD_IOU
    negative = click(np.add(middle(right), (20, 20)).tolist(), positive=False)
    one = mask_of(stack, image, *clicks, negative, task=1)
    assert (one & right).sum() < 0.1 * (both & right).sum()
    assert iou(one, left) >= GOOD_IOU


def frame(step):
    """Two discs of one size that pass each other at a distance, and where each of them is."""
    image, first = pasted(surface((256, 256), seed=step), ring((60 + 8 * step, 90), 34, 34), (200, 60, 40))
    image, second = pasted(image, ring((196 - 8 * step, 180), 34, 34), (30, 50, 130))
    return np.clip(image, 0, 255).astype(np.uint8), (first, second)


def test_the_tracker_keeps_two_things_apart():
    engine = Sam2Engine.load(dataclasses.replace(Settings(), model=MODEL, device="cpu", torch_threads=1))
    tracker = Tracker(engine.network, torch.device("cpu"))
    image, truths = frame(0)
    given = [TrackerPrompt(name, mask=torch.from_numpy(truth)) for name, truth in zip("ab", truths, strict=True)]
    tracker.prompt(0, engine.embed(image).maps, given)
    for step in range(1, 16):
        image, truths = frame(step)
        found = tracker.step(step, engine.embed(image).maps)
        assert found.object_ids == ("a", "b")
        masks = [engine.upsample(logits, image.shape[:2]) for logits in found.logits]
        assert [iou(mask, truth) > 0.6 for mask, truth in zip(masks, truths, strict=True)] == [True, True], f"frame {step}"
        assert iou(masks[0], truths[1]) < 0.1
        assert iou(masks[1], truths[0]) < 0.1
