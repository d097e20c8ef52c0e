"""Detectors of both kinds, small and with random weights, from folders as the hub has them, against transformers' own way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GroundingDinoImageProcessorPil, Owlv2ImageProcessorPil

from sam2_backend import detector as module
from sam2_backend.dataset_messages import LabelText
from sam2_backend.detector import GroundingDino, Owlv2, load_detector
from sam2_backend.errors import DetectorError
from sam2_backend.text_tokens import caption_groups, usable_texts

sys.path.insert(0, str(Path(__file__).parent))
from tiny_detectors import CLS, SEP, STOP, grounding_dino, owlv2

CPU = torch.device("cpu")
TEXTS = [LabelText("Animal", "a cat"), LabelText("Cup", "coffee cup"), LabelText("Rocket", "rocket")]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.array(Image.open(Path(__file__).parents[2] / "backend/demo_images/coffee.jpg").convert("RGB").resize((300, 200)))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> Path:
    return grounding_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def owl_folder(tmp_path_factory) -> Path:
    return owlv2(tmp_path_factory.mktemp("owl"))


@pytest.fixture(scope="module")
def dino(dino_folder) -> GroundingDino:
    found = load_detector(str(dino_folder), CPU)
    assert isinstance(found, GroundingDino)
    found._sides_px = (128, 200)
    return found


@pytest.fixture(scope="module")
def owl(owl_folder) -> Owlv2:
    found = load_detector(str(owl_folder), CPU)
    assert isinstance(found, Owlv2)
    return found


@pytest.mark.parametrize("kind", ["dino", "owl"])
def test_what_is_found_lies_in_the_image_best_first_and_belongs_to_a_label(kind, request, photo):
    found = request.getfixturevalue(kind).find(photo, TEXTS, 0.0)
    assert {d.label for d in found} <= {"Animal", "Cup", "Rocket"}
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    assert all(0 <= share <= 1 for d in found for share in d.box)
    assert len(found) > 3
    best = found[0].score
    assert all(d.score >= best - 1e-6 for d in request.getfixturevalue(kind).find(photo, TEXTS, best))
    assert request.getfixturevalue(kind).find(photo, TEXTS, 1.01) == []


def test_owlv2_finds_what_transformers_reads_from_its_output(owl, photo, monkeypatch):
    monkeypatch.setattr(module, "_SAME_OBJECT_IOU", 1.0)  # transformers leaves duplicates
    ours = owl.find(photo, TEXTS, 0.1)
    square = np.full((300, 300, 3), 128, np.uint8)
    square[:200] = photo
    tokens = owl._tokenizer([t.text for t in TEXTS], padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        out = owl._model(**tokens, pixel_values=module._normalized(square, (96, 96), module._CLIP))
    [theirs] = Owlv2ImageProcessorPil().post_process_object_detection(out, threshold=0.1, target_sizes=[(200, 300)])
    assert len(ours) == len(theirs["scores"]) > 0
    order = theirs["scores"].argsort(descending=True, stable=True)
    assert [d.score for d in ours] == pytest.approx(theirs["scores"][order].tolist())
    boxes = (theirs["boxes"][order].numpy() / (300, 200, 300, 200)).clip(0, 1)
    np.testing.assert_allclose([d.box for d in ours], boxes, atol=1e-5)
    assert [d.label for d in ours] == [TEXTS[i].label for i in theirs["labels"][order]]


def test_grounding_dino_sees_what_transformers_would_show_it(dino, photo):
    theirs = GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 200})(photo, return_tensors="pt")["pixel_values"]
    ours = module._normalized(photo, dino._size_hw(photo), module._IMAGENET)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.02


def test_grounding_dino_scores_a_box_by_the_tokens_of_a_text(dino, photo):
    ids = [CLS, 1030, 1031, STOP, 1032, 1033, STOP, 1034, STOP, SEP]
    pixels = module._normalized(photo, dino._size_hw(photo), module._IMAGENET)
    with torch.inference_mode():
        out = dino._model(pixel_values=pixels, input_ids=torch.tensor([ids]))
    by_token = out.logits[0].sigmoid()
    best = max(
        (float(by_token[q, t]), label)
        for q in range(30)
        for label, ts in (("Animal", (1, 2)), ("Cup", (4, 5)), ("Rocket", (7,)))
        for t in ts
    )
    first = dino.find(photo, TEXTS, 0.0)[0]
    assert (first.score, first.label) == (pytest.approx(best[0], abs=1e-5), best[1])


def test_labels_beyond_the_length_of_a_caption_are_asked_in_another(dino, photo):
    many = [LabelText(f"L{i}", "a cat") for i in range(40)]
    groups = list(caption_groups(many, dino._tokenizer, 64))
    assert [len(group) for group, _, _ in groups] == [20, 20]
    for _, ids, places in groups:
        assert len(ids) <= 64
        assert all([ids[i] for i in place] == [1030, 1031] for place in places)
    assert {d.label for d in dino.find(photo, many, 0.0)} <= {t.label for t in many}


def test_texts_without_a_word_in_them_are_left_out_with_the_reason():
    usable, skipped = usable_texts(
        [LabelText("A", " . "), LabelText("B", "Big  Cat."), LabelText("C", "x" * 201), LabelText("B", "big cat")]
    )
    assert usable == [LabelText("B", "big cat")]
    assert [s.what for s in skipped] == ["A", "C", "B"]


def test_without_a_setting_the_message_says_what_to_install_and_set():
    with pytest.raises(DetectorError, match=r"\[detect\].*SAM2_DETECTOR"):
        load_detector("", CPU)


def test_without_transformers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DetectorError, match=r"pip install 'sam2-label-studio\[detect\]'"):
        load_detector("some/detector", CPU)


def test_a_folder_that_is_no_detector_is_named(tmp_path, owl_folder):
    with pytest.raises(DetectorError, match="cannot be loaded"):
        load_detector(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(DetectorError, match="kind bert"):
        load_detector(str(tmp_path), CPU)
