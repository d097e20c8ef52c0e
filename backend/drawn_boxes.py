"""The rectangles of a task, from people or a detector, for mode `boxes`: shares of the image, by page, with their labels.

Where people drew or accepted any, theirs count, from annotations and drafts; else those of predictions. A rectangle that is there several
times (an annotation and its draft) is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.prompt_regions import item_index, label_names, named, number, region_id, shape_kind, size_hw
from sam2_backend.dataset_messages import Box
from sam2_backend.errors import PromptError

_ALIKE_DIGITS = 4
"""Corners that differ by less than a ten thousandth of the image are the same."""


@dataclass(frozen=True, slots=True)
class DrawnBox:
    """One rectangle.

    Attributes:
        region_id: Of the region.
        box: Upright; of a turned rectangle the one around it.
        labels: In the order in which the region has them; may be empty.
        to_name: Of its object tag.
        page: From 0.
    """

    region_id: str
    box: Box
    labels: tuple[str, ...]
    to_name: str
    page: int


def drawn_boxes(task: Mapping[str, Any], own_versions: Sequence[str] = ()) -> tuple[list[DrawnBox], list[str]]:
    """Every rectangle of a task, in the order of the sources.

    Args:
        task: With `annotations`, `drafts` and `predictions`, as far as it has them.
        own_versions: Model versions whose predictions are not looked at.

    Returns:
        The rectangles, and a sentence for each that cannot be read.
    """
    problems: list[str] = []
    people = [item for item in _items(task, "annotations") if not item.get("was_cancelled")] + _items(task, "drafts")
    models = [item for item in _items(task, "predictions") if item.get("model_version") not in own_versions]
    for sources in (people, models):
        boxes = list(_distinct(box for item in sources for box in _boxes(item.get("result"), problems)))
        if boxes:
            return boxes, problems
    return [], problems


def _items(task: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = task.get(name)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _boxes(result: Any, problems: list[str]) -> Iterator[DrawnBox]:
    regions = [region for region in result if isinstance(region, Mapping)] if isinstance(result, list) else []
    labelled = _labels_by_id(regions)
    for region in regions:
        if shape_kind(region) == "rectangle":
            try:
                own_id = region_id(region)
                labels = label_names(region, "rectangle") or labelled.get(own_id, ())
                yield DrawnBox(own_id, _box(region), labels, str(region.get("to_name")), item_index(region) or 0)
            except PromptError as error:
                problems.append(f"{named(region).replace('Prompt', 'Rectangle')}: {error.message}")


def _labels_by_id(regions: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Labels of separate <Labels> tags stand in a second result with the id of the first."""
    found: dict[str, tuple[str, ...]] = {}
    for region in regions:
        if region.get("type") == "labels":
            try:
                found[region_id(region)] = label_names(region, "labels")
            except PromptError:
                continue
    return found


def _box(region: Mapping[str, Any]) -> Box:
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise PromptError("it has no value.")
    left, top, width, height = (number(value.get(name), f"value.{name}") / 100 for name in ("x", "y", "width", "height"))
    rotation_deg = number(value.get("rotation") or 0, "value.rotation") % 360
    if width <= 0 or height <= 0:
        raise PromptError("it has no area.")
    box = _around(region, (left, top, width, height), rotation_deg) if rotation_deg else (left, top, left + width, top + height)
    if box[0] >= 1 or box[1] >= 1 or box[2] <= 0 or box[3] <= 0:
        raise PromptError("it lies outside the image.")
    return box


def _around(region: Mapping[str, Any], sides: tuple[float, float, float, float], rotation_deg: float) -> Box:
    """The upright box around one that is turned clockwise about its top-left corner, in pixels: shares have no angles."""
    image_height, image_width = size_hw(region)
    left, top, width, height = sides
    cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    across, down = width * image_width, height * image_height
    xs = [left + (a * cos - b * sin) / image_width for a, b in ((0, 0), (across, 0), (across, down), (0, down))]
    ys = [top + (a * sin + b * cos) / image_height for a, b in ((0, 0), (across, 0), (across, down), (0, down))]
    return min(xs), min(ys), max(xs), max(ys)


def _distinct(boxes: Iterable[DrawnBox]) -> Iterator[DrawnBox]:
    seen: set[tuple[Any, ...]] = set()
    for drawn in boxes:
        key = (drawn.to_name, drawn.page, drawn.labels, *(round(side, _ALIKE_DIGITS) for side in drawn.box))
        if key not in seen:
            seen.add(key)
            yield drawn
