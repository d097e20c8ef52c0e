"""The results of an annotation or prediction → regions with masks that can be compared, and a sentence for each that cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.label_config import LabelConfig
from backend.prompt_regions import SizeHW, item_index, label_names, named, region_id, shape_kind, size_hw
from backend.prompt_shapes import BoxXYXY, Shape, shape
from backend.regions import CLICKS
from sam2_backend import masks
from sam2_backend.errors import PromptError
from sam2_backend.messages import RunLengths

MOST_CLICKS = 10_000
"""More of them for one region are no clicks."""


@dataclass(frozen=True, slots=True)
class EvaluatedRegion:
    """One region on an image.

    Attributes:
        region_id: As Label Studio stores it; a copy of a prediction keeps the ids of its regions.
        label: Its first label; empty: it has none.
        to_name: Of its image tag.
        page: From 0.
        mask: At the size of its image as the browser shows it.
        box_xyxy_px: Around the mask.
        clicks: Prompts that it was made by, where the region tells; None: it does not.
    """

    region_id: str
    label: str
    to_name: str
    page: int
    mask: RunLengths
    box_xyxy_px: BoxXYXY
    clicks: int | None = None

    @property
    def place(self) -> tuple[str, int, tuple[int, int]]:
        """What two regions must share to be compared: image tag, page and image size."""
        return self.to_name, self.page, self.mask.size_hw


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A region, or a page of regions, that cannot be compared, and why, in a sentence."""

    region_id: str
    reason: str


def evaluated_regions(result: Any, config: LabelConfig) -> tuple[list[EvaluatedRegion], list[Unreadable]]:
    """Read brush, bitmask, polygon, ellipse and rectangle regions on images; all else (choices, points, videos) is passed over.

    Returns:
        The regions in their order, and those that cannot be read.
    """
    entries = [entry for entry in result if isinstance(entry, Mapping)] if isinstance(result, list) else []
    images = {tag.name for tag in config.images}
    labels = dict(_labels(entries))
    found: list[EvaluatedRegion] = []
    problems: list[Unreadable] = []
    for entry in entries:
        kind = shape_kind(entry)
        if kind in {"", "keypoint"} or str(entry.get("to_name")) not in images:
            continue
        try:
            found.append(_region(entry, kind, labels))
        except PromptError as error:
            name = named(entry).replace("Prompt", "Region").replace("A prompt", "A region")
            problems.append(Unreadable(plain(str(entry.get("id"))), plain(f"{name}: {error.message}")))
    return found, problems


def comparable(
    predicted: Sequence[EvaluatedRegion], annotated: Sequence[EvaluatedRegion], unreadable: Sequence[Unreadable]
) -> tuple[list[EvaluatedRegion], list[EvaluatedRegion], list[Unreadable]]:
    """What is left of both where one has regions that cannot be read, or another image size.

    The counterpart of a region that cannot be read is neither added nor deleted: it is left out as well.

    Returns:
        Predicted and annotated regions, and the pages whose sizes differ.
    """
    lost = {problem.region_id for problem in unreadable}
    sizes: dict[tuple[str, int], tuple[set[SizeHW], set[SizeHW]]] = {}
    for side, regions in enumerate((predicted, annotated)):
        for region in regions:
            sizes.setdefault((region.to_name, region.page), (set(), set()))[side].add(region.mask.size_hw)
    differing = {page: pair for page, pair in sizes.items() if all(pair) and pair[0].isdisjoint(pair[1])}
    kept = [
        [region for region in regions if region.region_id not in lost and (region.to_name, region.page) not in differing]
        for regions in (predicted, annotated)
    ]
    return kept[0], kept[1], [Unreadable("", _differ(*page, *map(min, pair))) for page, pair in differing.items()]


def _differ(to_name: str, page: int, predicted_hw: SizeHW, annotated_hw: SizeHW) -> str:
    sizes = [f"{width} x {height}" for height, width in (predicted_hw, annotated_hw)]
    return (
        f"{to_name}, page {page + 1}: the prediction is of an image of {sizes[0]} pixels, the annotation of {sizes[1]}. Predict it again."
    )


def plain(text: str) -> str:
    """A text as it may be written anywhere: JSON knows halves of characters that UTF-8 does not."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _region(entry: Mapping[str, Any], kind: str, labels: Mapping[str, str]) -> EvaluatedRegion:
    own_id, size = region_id(entry), size_hw(entry)
    names = label_names(entry, kind)
    drawn = shape(entry, kind, size)
    mask = drawn.mask or masks.runs_from_mask(masks.fill_polygon(_corners(drawn), size))
    label, page = plain(names[0] if names else labels.get(own_id, "")), item_index(entry) or 0
    return EvaluatedRegion(plain(own_id), label, str(entry["to_name"]), page, mask, drawn.box_xyxy_px or (0, 0, 0, 0), _clicks(entry))


def _corners(drawn: Shape) -> Sequence[tuple[float, float]]:
    """Of a rectangle, which is filled as a polygon is: a pixel belongs to it when its centre does."""
    if drawn.clip_xy_px:
        return drawn.clip_xy_px
    left, top, right, bottom = drawn.box_xyxy_px or (0.0, 0.0, 0.0, 0.0)
    return (left, top), (right, top), (right, bottom), (left, bottom)


def _labels(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Labels of separate <Labels> tags stand in a second result with the id of the first."""
    for entry in entries:
        if entry.get("type") == "labels":
            try:
                names = label_names(entry, "labels")
                if names:
                    yield region_id(entry), names[0]
            except PromptError:
                continue


def _clicks(entry: Mapping[str, Any]) -> int | None:
    meta = entry.get("meta")
    count = meta.get(CLICKS) if isinstance(meta, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 < count <= MOST_CLICKS else None
