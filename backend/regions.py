"""Masks → regions in the shape that the labeling config's control tag wants, as Label Studio's editor draws and stores them.

What a shape cannot hold is lost: a polygon has no holes and one ring, so every island becomes a region of its own; a rectangle is the
box around all islands.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from backend.brush_rle import encode_runs
from backend.label_config import OutputKind, OutputTag
from backend.mask_png import png_from_mask
from backend.project_options import ProjectOptions
from sam2_backend.masks import area_px, box_xyxy_px, mask_from_runs
from sam2_backend.messages import ObjectMask, RunLengths
from sam2_backend.outlines import polygons_xy_px

Value = dict[str, Any]

CLICKS = "clicks"
"""Under `meta`, which the editor stores unseen: by how many prompts a region was made. `evaluate` reads it."""

#: Of a per cent: 0.004 pixels at a width of 4000.
_DECIMALS = 4


def regions(
    mask: ObjectMask,
    output: OutputTag,
    *,
    label_names: tuple[str, ...],
    region_id: str,
    item_index: int | None,
    options: ProjectOptions,
    n_clicks: int = 0,
) -> list[Value]:
    """The results that show one object's mask.

    Args:
        mask: In pixels of the image as the browser shows it.
        output: The control tag that the results go to.
        label_names: Labels of the object; none: it is drawn without one.
        region_id: Id of the result; further parts of a polygon get "-2", "-3", … appended. A result with the id of a region that was
            accepted before replaces it.
        item_index: The page, from 0; None: the task has one image.
        options: `min_area_px` and `score_threshold` drop objects, `epsilon` simplifies polygons.
        n_clicks: Prompts that a person gave for it; 0: none did.

    Returns:
        JSON-ready results. Labels of a separate `<Labels>` tag follow as a second result with the same id. Empty: nothing to show.
    """
    if area_px(mask.runs) < max(options.min_area_px, 1) or mask.score < options.score_threshold:
        return []
    common: Value = {
        "to_name": output.to_name,
        "original_width": mask.runs.size_hw[1],
        "original_height": mask.runs.size_hw[0],
        "image_rotation": 0,
        "score": round(float(mask.score), 4),
    }
    common |= {} if item_index is None else {"item_index": item_index}
    common |= {"meta": {CLICKS: n_clicks}} if n_clicks else {}
    found: list[Value] = []
    for part, value in enumerate(_VALUES[output.kind](mask.runs, options), start=1):
        part_id = region_id if part == 1 else f"{region_id}-{part}"
        found += _labelled({"id": part_id} | common, value, output, label_names)
    return found


def _labelled(common: Value, value: Value, output: OutputTag, label_names: tuple[str, ...]) -> list[Value]:
    """One result whose value holds its labels, or the shape and, where a separate tag labels it, the same once more with the labels."""
    own = {output.type: list(label_names)} if output.control.has_own_labels else {}
    shape = {"from_name": output.from_name, "type": output.type, "value": value | own}
    if output.labels_tag is None or not label_names:
        return [common | shape]
    label = {"from_name": output.labels_tag.name, "type": "labels", "value": value | {"labels": list(label_names)}}
    return [common | shape, common | label]


def _brush(runs: RunLengths, _: ProjectOptions) -> list[Value]:
    return [{"format": "rle", "rle": list(encode_runs(runs))}]


def _bitmask(runs: RunLengths, _: ProjectOptions) -> list[Value]:
    png = base64.b64encode(png_from_mask(mask_from_runs(runs)))
    return [{"imageDataURL": f"data:image/png;base64,{png.decode('ascii')}"}]


def _polygon(runs: RunLengths, options: ProjectOptions) -> list[Value]:
    height, width = runs.size_hw
    rings = polygons_xy_px(mask_from_runs(runs), options.epsilon, min_area_px=options.min_area_px)
    return [{"points": (ring * (100 / width, 100 / height)).round(_DECIMALS).tolist(), "closed": True} for ring in rings]


def _rectangle(runs: RunLengths, _: ProjectOptions) -> list[Value]:
    box = box_xyxy_px(runs)
    if box is None:
        return []
    height, width = runs.size_hw
    left, top, right, bottom = box
    sides = {"x": left / width, "y": top / height, "width": (right - left) / width, "height": (bottom - top) / height}
    return [{name: 100 * side for name, side in sides.items()} | {"rotation": 0}]


_VALUES: Mapping[OutputKind, Callable[[RunLengths, ProjectOptions], list[Value]]] = {
    "brush": _brush,
    "bitmask": _bitmask,
    "polygon": _polygon,
    "rectangle": _rectangle,
}
