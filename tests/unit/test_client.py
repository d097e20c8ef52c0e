"""The examples in the client's documentation do what they say; and what they leave out."""

from __future__ import annotations

import doctest
import io

import numpy as np
import pytest
from PIL import Image

from sam2_backend import client as module
from sam2_backend.client import Sam2
from sam2_backend.dataset_messages import LabelText
from sam2_backend.detector import Detection
from sam2_backend.errors import DetectorError, MediaUnreadableError, PromptError


@pytest.fixture(scope="module")
def sam2() -> Sam2:
    return Sam2.load("random:nano", device="cpu", torch_threads=1)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (60, 90, 3), dtype=np.uint8)


def test_the_documented_examples_run():
    result = doctest.testmod(module)
    assert result.attempted > 10
    assert result.failed == 0


def test_an_image_is_a_path_or_bytes_or_pixels(sam2, pixels, tmp_path):
    path, buffer = tmp_path / "image.png", io.BytesIO()
    Image.fromarray(pixels).save(path)
    Image.fromarray(pixels).save(buffer, "PNG")
    for source in (path, str(path), buffer.getvalue(), pixels):
        assert np.array_equal(sam2.image(source).pixels, pixels)
    with pytest.raises(MediaUnreadableError):
        sam2.image(b"no image")


def test_a_prompt_without_a_point_or_with_a_bad_box_is_told(sam2, pixels):
    image = sam2.image(pixels)
    with pytest.raises(PromptError, match="neither"):
        image.click()
    with pytest.raises(PromptError, match=r"box 1: .*no area"):
        image.boxes([(0, 0, 50, 50), (10, 10, 10, 20)])


def test_text_without_a_detector_says_what_to_do(sam2, pixels):
    with pytest.raises(DetectorError, match=r"\[detect\]"):
        sam2.image(pixels).text({"Cat": "a cat"})


class TwoBoxes:
    name, min_score = "two boxes", 0.25

    def find(self, image, texts, min_score):
        assert image.shape == (60, 90, 3)
        assert list(texts) == [LabelText("Cat", "a cat")]
        assert min_score == 0.25
        return [Detection("Cat", (0.1, 0.1, 0.6, 0.9), 0.8), Detection("Cat", (0.4, 0.4, 0.4, 0.9), 0.5)]


def test_what_a_detector_finds_becomes_masks_with_its_score(sam2, pixels, monkeypatch):
    monkeypatch.setattr(sam2, "_detector", TwoBoxes)
    found = sam2.image(pixels).text({"Cat": "A cat."})
    assert [(one.label, one.score) for one in found] == [("Cat", 0.8)]
    assert found[0].area_px > 0


def test_examples_of_other_images_are_remembered_up_to_the_limit(sam2, pixels):
    mask = np.zeros((60, 90), bool)
    mask[20:40, 20:50] = True
    memory = sam2.remember([(sam2.image(pixels), mask, "Cat")] * 5, max_examples=3)
    assert memory.n_examples == {"Cat": 3}
    assert all(one.label == "Cat" for one in sam2.image(pixels).similar(memory))
