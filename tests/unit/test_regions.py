"""Every kind of region against Label Studio's own validation, and read back to the mask it shows."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

from backend.brush_rle import decode_mask
from backend.label_config import OutputTag, parse_label_config
from backend.project_options import ProjectOptions
from backend.regions import regions
from sam2_backend.masks import fill_polygon, runs_from_mask
from sam2_backend.messages import ObjectMask

SIZE_HW = (50, 200)
MASK = np.zeros(SIZE_HW, bool)
MASK[10:20, 30:90] = True
MASK[30:34, 100:104] = True

LABELS = '<Label value="Cat"/><Label value="Dog"/>'
KINDS = ("Brush", "Bitmask", "Polygon", "Rectangle")


def config(kind: str, *, separated: bool = False) -> str:
    controls = f'<{kind}Labels name="out" toName="image">{LABELS}</{kind}Labels>'
    if separated:
        controls = f'<Labels name="what" toName="image">{LABELS}</Labels><{kind} name="out" toName="image"/>'
    return f'<View><Image name="image" value="$image"/>{controls}</View>'


def output(kind: str, *, separated: bool = False) -> OutputTag:
    return parse_label_config(config(kind, separated=separated)).output("image")


def made(
    kind: str,
    mask: np.ndarray = MASK,
    *,
    separated: bool = False,
    score: float = 0.9,
    labels=("Cat",),
    item_index=None,
    n_clicks=0,
    **options,
):
    answer = ObjectMask("prompt", runs_from_mask(mask), score)
    tag = output(kind, separated=separated)
    return regions(
        answer, tag, label_names=labels, region_id="abc", item_index=item_index, options=ProjectOptions(**options), n_clicks=n_clicks
    )


def shown(region: dict) -> np.ndarray:
    """The pixels that a region covers."""
    value, (height, width) = region["value"], SIZE_HW
    if "rle" in value:
        return decode_mask(value["rle"], SIZE_HW)
    if "imageDataURL" in value:
        with Image.open(io.BytesIO(base64.b64decode(value["imageDataURL"].removeprefix("data:image/png;base64,")))) as image:
            return np.asarray(image.convert("RGBA"))[:, :, 3] > 0
    if "points" in value:
        return fill_polygon(np.array(value["points"]) * (width / 100, height / 100), SIZE_HW)
    x, y, w, h = (value[name] / 100 for name in ("x", "y", "width", "height"))
    corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    return fill_polygon(np.array(corners) * (width, height), SIZE_HW)


@pytest.mark.parametrize("item_index", [None, 0, 3])
@pytest.mark.parametrize("labels", [("Cat",), ("Cat", "Dog"), ()])
@pytest.mark.parametrize("separated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_label_studio_accepts_every_kind_of_region(kind, separated, labels, item_index):
    result = made(kind, separated=separated, labels=labels, item_index=item_index)
    prediction = {"result": result, "score": 0.9, "model_version": "sam2"}
    assert result
    assert LabelInterface(config(kind, separated=separated)).validate_prediction(prediction, return_errors=True) == []
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_label_studios_validation_would_see_a_mistake():
    (region,) = made("Brush")
    prediction = {"result": [region | {"from_name": "nowhere"}], "score": 0.9, "model_version": "sam2"}
    assert LabelInterface(config("Brush")).validate_prediction(prediction, return_errors=True)


@pytest.mark.parametrize("kind", ["Brush", "Bitmask", "Polygon"])
def test_a_region_shows_the_mask(kind):
    assert np.array_equal(np.logical_or.reduce([shown(region) for region in made(kind)]), MASK)


def test_a_region_says_by_how_many_clicks_it_was_made_and_label_studio_accepts_that():
    result = made("Brush", separated=True, n_clicks=3)
    assert [region["meta"] for region in result] == [{"clicks": 3}] * 2
    prediction = {"result": result, "score": 0.9, "model_version": "sam2"}
    assert LabelInterface(config("Brush", separated=True)).validate_prediction(prediction, return_errors=True) == []
    assert all("meta" not in region for region in made("Brush"))


def test_a_rectangle_is_the_box_around_the_whole_mask():
    (region,) = made("Rectangle")
    assert region["value"] == {"x": 15, "y": 20, "width": 37, "height": 48, "rotation": 0, "rectanglelabels": ["Cat"]}
    assert np.nonzero(shown(region))[0][[0, -1]].tolist() == [10, 33]


def test_a_region_says_where_it_belongs():
    (region,) = made("Brush", item_index=2)
    value = region.pop("value")
    assert region == {
        "id": "abc",
        "from_name": "out",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": 200,
        "original_height": 50,
        "image_rotation": 0,
        "score": 0.9,
        "item_index": 2,
    }
    assert value.keys() == {"format", "rle", "brushlabels"}
    assert (value["format"], value["brushlabels"]) == ("rle", ["Cat"])


def test_the_page_is_left_out_where_there_is_one_image_and_kept_where_it_is_the_first():
    assert "item_index" not in made("Brush")[0]
    assert made("Brush", item_index=0)[0]["item_index"] == 0


def test_separate_labels_follow_as_a_second_result_with_the_same_id_and_shape():
    shape, label = made("Brush", separated=True)
    assert (shape["type"], shape["from_name"], shape["value"].keys()) == ("brush", "out", {"format", "rle"})
    assert (label["type"], label["from_name"], label["value"]) == ("labels", "what", shape["value"] | {"labels": ["Cat"]})
    assert shape["id"] == label["id"]


def test_without_a_label_a_region_is_drawn_unlabelled():
    assert made("Brush", labels=())[0]["value"]["brushlabels"] == []
    assert [region["type"] for region in made("Brush", labels=(), separated=True)] == ["brush"]


def test_parts_of_a_polygon_are_regions_with_ids_of_their_own_largest_first():
    large, small = made("Polygon")
    assert (large["id"], small["id"]) == ("abc", "abc-2")
    assert large["value"]["closed"] is True
    assert sorted(large["value"]["points"]) == [[15, 20], [15, 40], [45, 20], [45, 40]]
    assert shown(small).sum() == 16
    assert [region["id"] for region in made("Polygon", separated=True)] == ["abc", "abc", "abc-2", "abc-2"]


def test_epsilon_simplifies_polygons():
    y, x = np.mgrid[:50, :200] + 0.5
    disc = (x - 100) ** 2 + (y - 25) ** 2 < 400
    n_points = [len(made("Polygon", disc, epsilon=epsilon)[0]["value"]["points"]) for epsilon in (0, 1, 5)]
    assert n_points == sorted(n_points, reverse=True)
    assert n_points[0] > n_points[-1] >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_a_low_score_and_a_small_area_show_nothing(kind):
    assert made(kind, np.zeros(SIZE_HW, bool)) == []
    assert made(kind, score=0.4, score_threshold=0.5) == []
    assert made(kind, min_area_px=617) == []
    assert made(kind, score=0.5, score_threshold=0.5, min_area_px=600)


def test_small_parts_of_a_polygon_are_left_out_alone():
    assert len(made("Polygon", min_area_px=16)) == 2
    assert len(made("Polygon", min_area_px=17)) == 1
