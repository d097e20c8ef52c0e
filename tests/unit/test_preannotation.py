"""A DatasetJob becomes a DatasetReply, on a small network with random weights; media comes from a dictionary."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from sam2_backend.dataset_messages import (
    DatasetJob,
    DatasetReply,
    EverythingOptions,
    Example,
    LabelledBox,
    LabelText,
    SimilarOptions,
)
from sam2_backend.detector import Detection
from sam2_backend.embedding_cache import EmbeddingCache
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import DetectorError, MediaUnreachableError, PromptError
from sam2_backend.example_memories import ExampleMemories
from sam2_backend.images import inspect
from sam2_backend.masks import mask_from_runs, runs_from_mask
from sam2_backend.media import MediaFile
from sam2_backend.messages import MediaRef, from_wire, to_wire
from sam2_backend.pictures import Atelier
from sam2_backend.preannotation import Preannotation
from sam2_backend.settings import Settings

SIZE_HW = (60, 90)
TURNED = "http://images.test/turned.jpg"
BOX = (0.2, 0.2, 0.8, 0.9)
#: The scores of random weights are anything.
ALL = EverythingOptions(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)


def uri(seed: int) -> str:
    return f"http://images.test/{seed}.jpg"


def jpeg(seed: int, exif_orientation: int = 1) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    image, out = Image.fromarray(coarse).resize(SIZE_HW[::-1]), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = exif_orientation
    image.save(out, "JPEG", exif=exif)
    return out.getvalue()


class Store:
    """The part of a MediaStore that is used here, over a dictionary."""

    def __init__(self) -> None:
        self.sources = {uri(seed): jpeg(seed) for seed in range(1, 9)} | {TURNED: jpeg(1, 6)}
        self.fetched: list[str] = []

    def fetch(self, ref: MediaRef) -> MediaFile:
        self.fetched.append(ref.uri)
        if ref.uri not in self.sources:
            raise MediaUnreachableError("The image is gone.")
        data = self.sources[ref.uri]
        return MediaFile(f"hash of {ref.uri}", None, data, inspect(data, 10**6))


class Detector:
    name, min_score = "a detector", 0.3

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def find(self, image, texts, min_score):
        self.asked.append((image.shape, [(text.label, text.text) for text in texts], min_score))
        return [Detection("Cat", BOX, 0.9), Detection("Dog", (0.0, 0.0, 0.5, 0.5), 0.6), Detection("Cat", (0.1, 0.1, 0.1, 0.4), 0.5)]


@pytest.fixture(scope="module")
def engine() -> Sam2Engine:
    return Sam2Engine.load(Settings(model="random:nano", device="cpu", torch_threads=1))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def detector() -> Detector:
    return Detector()


@pytest.fixture
def preannotation(engine, store, detector) -> Preannotation:
    cache = EmbeddingCache(None, engine.device, engine.dtype, device_budget_bytes=1 << 28, host_budget_bytes=0, redis_budget_bytes=0)
    atelier = Atelier(engine, store, cache, 10**6)
    return Preannotation(atelier, "w0", ExampleMemories(atelier), lambda: detector)


def job(mode: str, image: str = uri(1), **more) -> DatasetJob:
    return DatasetJob(MediaRef(image), mode, **more)


def example(seed: int, label: str = "Cat", **more) -> Example:
    mask = np.zeros(SIZE_HW, bool)
    mask[20:40, 10 + seed : 40 + seed] = True
    return Example(MediaRef(uri(seed)), label, **({"mask": runs_from_mask(mask)} | more))


def test_boxes_become_masks_with_all_that_a_region_needs(preannotation):
    reply = preannotation.answer(job("boxes", boxes=(LabelledBox("b1", BOX, "Cat"), LabelledBox("b2", (2.0, 0.1, 3.0, 0.2), "Dog"))))
    assert (reply.size_hw, reply.worker, reply.cache) == (SIZE_HW, "w0", "none")
    assert [(mask.source, mask.label, mask.runs.size_hw) for mask in reply.masks] == [("b1", "Cat", SIZE_HW)]
    assert [skip.what for skip in reply.skipped] == ["b2"]
    assert {"media", "embed", "decode", "others"} == set(reply.timings_ms)
    assert from_wire(DatasetReply, json.loads(json.dumps(to_wire(reply)))) == reply


def test_the_size_is_the_one_that_a_browser_shows(preannotation):
    reply = preannotation.answer(job("boxes", TURNED, boxes=(LabelledBox("b1", BOX),)))
    assert reply.size_hw == (90, 60)
    assert reply.masks[0].runs.size_hw == (90, 60)


def test_an_image_that_was_embedded_is_not_embedded_again(preannotation):
    assert preannotation.answer(job("boxes", boxes=(LabelledBox("b1", BOX),))).cache == "none"
    assert preannotation.answer(job("everything", everything=ALL)).cache == "device"


def test_everything_carries_the_only_label_and_is_bounded_by_score_and_number(preannotation):
    found = preannotation.answer(job("everything", everything=ALL, label="Cell")).masks
    assert len(found) > 3
    assert {mask.label for mask in found} == {"Cell"}
    assert [mask.score for mask in found] == sorted((mask.score for mask in found), reverse=True)
    assert preannotation.answer(job("everything", everything=ALL, label="Cell", limit=2)).masks == found[:2]
    threshold = found[1].score
    assert preannotation.answer(job("everything", everything=ALL, label="Cell", min_score=threshold)).masks == found[:2]


def test_limits_that_no_mask_passes_are_told_with_how_near_the_best_comes(preannotation):
    reply = preannotation.answer(job("everything", everything=dataclasses.replace(ALL, pred_iou_thresh=0.99)))
    assert reply.masks == ()
    [skipped] = reply.skipped
    assert skipped.what == "everything"
    assert "pred_iou_thresh 0.99" in skipped.reason
    assert "stability" in skipped.reason


@pytest.mark.parametrize(
    "bad", [{"points_per_side": 0}, {"points_per_batch": 0}, {"crop_n_layers": 9}, {"crop_overlap_ratio": 1.5}, {"points_per_side": 10**6}]
)
def test_an_option_out_of_its_range_is_named(preannotation, bad):
    with pytest.raises(PromptError, match=next(iter(bad))):
        preannotation.answer(job("everything", everything=dataclasses.replace(ALL, **bad)))


def test_words_become_boxes_and_boxes_masks_with_the_detectors_score(preannotation, detector):
    reply = preannotation.answer(job("text", texts=(LabelText("Cat", "A cat."), LabelText("Dog", "dog"), LabelText("None", ""))))
    assert detector.asked == [((60, 90, 3), [("Cat", "a cat"), ("Dog", "dog")], 0.3)]
    assert [(mask.label, mask.score, mask.source) for mask in reply.masks] == [("Cat", 0.9, ""), ("Dog", 0.6, "")]
    assert [skip.what for skip in reply.skipped] == ["None", "Cat"]
    assert "detect" in reply.timings_ms


def test_the_score_and_number_of_a_job_go_to_the_detector_first(preannotation, detector):
    reply = preannotation.answer(job("text", texts=(LabelText("Cat", "cat"),), min_score=0.55, limit=1))
    assert detector.asked[0][2] == 0.55
    assert [mask.label for mask in reply.masks] == ["Cat"]


def test_labels_without_a_word_cannot_be_looked_for(preannotation):
    with pytest.raises(PromptError, match="no text"):
        preannotation.answer(job("text", texts=(LabelText("Cat", " "),)))


def test_without_a_detector_the_job_says_what_to_install(preannotation):
    def none():
        raise DetectorError("pip install")

    with pytest.raises(DetectorError):
        dataclasses.replace(preannotation, detector=none).answer(job("text", texts=(LabelText("Cat", "cat"),)))


def test_the_examples_are_read_once_for_all_images(preannotation, store):
    asked = job("similar", examples=(example(2), example(3, "Dog")))
    preannotation.answer(asked)
    assert store.fetched.count(uri(2)) == 1
    for seed in (4, 5):
        preannotation.answer(dataclasses.replace(asked, media=MediaRef(uri(seed))))
    assert store.fetched.count(uri(2)) == 1


def test_an_example_out_of_reach_is_tried_again_for_the_next_image(preannotation, store):
    gone = uri(2)
    data = store.sources.pop(gone)
    asked = job("similar", examples=(example(2), example(3)))
    assert len(preannotation.answer(asked).skipped) == 1
    store.sources[gone] = data
    assert preannotation.answer(asked).skipped == ()
    preannotation.answer(asked)
    assert store.fetched.count(gone) == 2


def test_only_so_many_examples_of_a_label_are_fetched(preannotation, store):
    examples = tuple(example(seed) for seed in (2, 3, 4)) + (example(5, "Dog"),)
    preannotation.answer(job("similar", examples=examples, similar=SimilarOptions(max_examples=2)))
    assert {uri(2), uri(3), uri(5)} <= set(store.fetched)
    assert uri(4) not in store.fetched


def test_an_example_of_no_use_is_left_out_with_the_reason(preannotation):
    examples = (
        Example(MediaRef("http://images.test/gone.jpg"), "Cat", box=BOX),
        example(2, mask=None),
        example(3, mask=None, box=(0.5, 0.5, 0.5, 0.5)),
        example(4, mask=runs_from_mask(np.zeros(SIZE_HW, bool))),
        example(5, mask=runs_from_mask(np.ones((50, 50), bool))),
        example(6, mask=None, box=BOX),
    )
    skipped = preannotation.answer(job("similar", examples=examples)).skipped
    assert [skip.what for skip in skipped] == [f"example {number} of Cat" for number in range(1, 6)]
    for skip, word in zip(skipped, ("gone", "neither", "no area", "empty", "pixels"), strict=True):
        assert word in skip.reason


def test_no_example_of_use_is_an_error(preannotation):
    with pytest.raises(PromptError, match=r"no example.*Accept"):
        preannotation.answer(job("similar"))
    with pytest.raises(PromptError, match=r"no example.*gone"):
        preannotation.answer(job("similar", examples=(Example(MediaRef("http://images.test/gone.jpg"), "Cat", box=BOX),)))


def test_an_image_that_is_gone_is_an_error_of_the_media(preannotation):
    with pytest.raises(MediaUnreachableError):
        preannotation.answer(job("everything", "http://images.test/gone.jpg"))


@pytest.mark.parametrize("mode", ["boxes", "everything", "text", "similar"])
def test_others_are_let_in_and_their_time_is_not_ours(preannotation, mode):
    pauses = []
    fields = {"boxes": tuple(LabelledBox(str(i), BOX) for i in range(20)), "texts": (LabelText("Cat", "cat"),), "examples": (example(2),)}
    reply = preannotation.answer(job(mode, everything=dataclasses.replace(ALL, points_per_batch=3), **fields), lambda: pauses.append(1))
    assert pauses
    assert "others" in reply.timings_ms


def test_every_mask_is_of_its_runs(preannotation):
    for mask in preannotation.answer(job("everything", everything=ALL)).masks:
        full = mask_from_runs(mask.runs)
        rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
        box = (columns[0] / 90, rows[0] / 60, (columns[-1] + 1) / 90, (rows[-1] + 1) / 60)
        assert mask.box == pytest.approx(box)
        assert mask.area_px == full.sum()
