"""Context (what Label Studio's editor sends with a click) → one prompt in pixels for every object drawn.

Regions of one page, object tag and label belong together: their points refine one object. Every box and every mask (brush, bitmask,
polygon, ellipse) is an object of its own; a point inside one, or inside the box around it, refines the smallest such object, and with
a single box or mask all points do. Positive points that are left make one more object; negative ones that are left hold for all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from backend import prompt_regions
from backend.label_config import LabelConfig, ObjectTag
from backend.prompt_regions import KINDS, SizeHW
from backend.prompt_shapes import Shape, shape
from sam2_backend.errors import PromptError
from sam2_backend.messages import ImagePrompt

LONGEST_READING_S = 5.0
"""Of the processor's time, for all masks of one context: a request of a few kB can draw thousands, each as large as an image can be."""
MOST_RUNS = 1 << 23
"""Of all masks of one context; a mask drawn by hand has some ten thousand."""

_Key = tuple[str, str, int | None]
"""Id of a region, name of its object tag, page."""


@dataclass(frozen=True, slots=True)
class DrawnObject:
    """One object that the annotator asks for.

    Attributes:
        prompt: What was drawn for it; its `prompt_id` is the id of the oldest region that is not a negative point.
        label_names: The prompt's labels as far as the output's control tag has them.
        item_index: The page, from 0; None: the task has one image.
        to_name: Name of the object tag.
        size_hw: The page's height and width, as the browser shows it.
        region_id: Id for the result: the same as long as the same drawing is refined, unlike the prompt's own id, and unlike on other pages.
    """

    prompt: ImagePrompt
    label_names: tuple[str, ...]
    item_index: int | None
    to_name: str
    size_hw: SizeHW
    region_id: str

    @property
    def n_clicks(self) -> int:
        """How many prompts were given: points, and the box or shape."""
        return len(self.prompt.points) + (self.prompt.box_xyxy_px is not None or self.prompt.mask is not None)


@dataclass(frozen=True, slots=True)
class _Region:
    """One drawn region; separated labeling configs send it twice, here it is one."""

    id: str
    to_name: str
    item_index: int | None
    label_names: tuple[str, ...]
    size_hw: SizeHW
    shape: Shape

    @property
    def is_negative(self) -> bool:
        return self.shape.point is not None and not self.shape.point.is_positive


def drawn_objects(context: Mapping[str, Any], config: LabelConfig, max_prompts: int) -> list[DrawnObject]:
    """Read a context; regions on videos are not prompts here and are left out.

    Args:
        context: `{"result": [region, …]}`, oldest region first.
        max_prompts: Most regions in one context.

    Returns:
        Objects in the order in which each was first drawn; none where there are only negative points.

    Raises:
        PromptError: a region is malformed, of an unknown type, outside the image, or there are too many.
        LabelConfigError: no control tag of the image can hold a mask.
    """
    regions = _regions(_entries(context, max_prompts), config)
    if len(regions) > max_prompts:
        raise PromptError(f"{len(regions)} prompts at a time are more than {max_prompts} (SAM2_MAX_PROMPTS). Accept or delete some.")
    _check_sizes(regions)
    groups: dict[tuple[Any, ...], list[_Region]] = {}
    for region in regions:
        groups.setdefault((region.to_name, region.item_index, region.label_names), []).append(region)
    age = {id(region): number for number, region in enumerate(regions)}
    parts = [part for group in groups.values() for part in _objects(group)]
    parts.sort(key=lambda part: age[id(_oldest(part))])
    return [_drawn_object(part, config) for part in parts]


def _entries(context: Mapping[str, Any], max_prompts: int) -> list[Mapping[str, Any]]:
    entries = context.get("result") if isinstance(context, Mapping) else None
    if not isinstance(entries, list):
        raise PromptError("The context must be an object whose `result` is the list of regions drawn.")
    # A region may come with its labels and per-region answers as further entries of the same id.
    if len(entries) > 4 * max_prompts:
        raise PromptError(f"{len(entries)} results in one context are more than {max_prompts} prompts can have. Accept or delete some.")
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise PromptError("Every entry of the context's `result` must be a region: an object with type and value.")
    return entries


def _regions(entries: Iterable[Mapping[str, Any]], config: LabelConfig) -> list[_Region]:
    same: dict[_Key, list[Mapping[str, Any]]] = {}
    for entry in entries:
        tag = _object_tag(entry, config)
        if tag.kind == "video" or str(entry.get("type")).lower().startswith("video"):
            continue
        with _naming(entry):
            index = prompt_regions.item_index(entry)
            page = 0 if index is None and tag.value_list else index
            same.setdefault((prompt_regions.region_id(entry), tag.name, page), []).append(entry)
    return _read(same)


def _read(same: Mapping[_Key, Sequence[Mapping[str, Any]]]) -> list[_Region]:
    began_s, n_runs, regions = time.thread_time(), 0, list[_Region]()
    for key, twins in same.items():
        regions.append(_region(key, twins))
        mask = regions[-1].shape.mask
        n_runs += len(mask.counts) // 4 if mask else 0
        if n_runs > MOST_RUNS or time.thread_time() - began_s > LONGEST_READING_S:
            raise PromptError(f"The first {len(regions)} of the {len(same)} prompts take too long to read. Accept or delete some.")
    return regions


def _object_tag(entry: Mapping[str, Any], config: LabelConfig) -> ObjectTag:
    name = entry.get("to_name")
    tags = [tag for tag in config.objects if tag.name == name] if name else list(config.images)
    if len(tags) != 1 and not name:
        raise PromptError("A prompt does not say which image it is on. Send to_name.")
    if not tags:
        raise PromptError(f"A prompt is on {str(name)[:60]!r}, which the labeling config does not have. Reload the page.")
    if tags[0].kind not in {"image", "video"}:
        raise PromptError(f"A prompt is on <{tags[0].tag}>; only images are answered.")
    return tags[0]


def _region(key: _Key, twins: Sequence[Mapping[str, Any]]) -> _Region:
    """Merge the entries of one id: the first that is a shape says where, all say the labels."""
    drawn = next((entry for entry in twins if prompt_regions.shape_kind(entry)), None)
    if drawn is None:
        kinds = ", ".join(f"{kind}(labels)" for kind in KINDS)
        raise PromptError(f"A prompt of type {str(twins[0].get('type'))[:60]!r} is not known. These are: {kinds}.")
    kind = prompt_regions.shape_kind(drawn)
    with _naming(drawn):
        names = dict.fromkeys(name for entry in twins for name in prompt_regions.label_names(entry, kind))
        size_hw = prompt_regions.size_hw(drawn)
        return _Region(*key, tuple(names), size_hw, shape(drawn, kind, size_hw))


@contextmanager
def _naming(region: Mapping[str, Any]) -> Iterator[None]:
    """Put the region's name before what is wrong with it."""
    try:
        yield
    except PromptError as error:
        raise PromptError(f"{prompt_regions.named(region)}: {error.message}") from error


def _check_sizes(regions: Iterable[_Region]) -> None:
    sizes: dict[tuple[str, int | None], SizeHW] = {}
    for region in regions:
        if sizes.setdefault((region.to_name, region.item_index), region.size_hw) != region.size_hw:
            raise PromptError(f"Prompt {region.id[:40]!r} says another image size than the prompts before it. Reload the page.")


def _objects(group: Sequence[_Region]) -> Iterator[list[_Region]]:
    """The regions of each object of a group, oldest first."""
    drawn = [region for region in group if region.shape.point is None]
    members: list[list[_Region]] = [[region] for region in drawn]
    left: list[_Region] = []
    for point in (region for region in group if region.shape.point):
        home = _home(point, drawn)
        (left if home is None else members[home]).append(point)
    if any(not region.is_negative for region in left):
        members.append([region for region in left if not region.is_negative])
    shared = [region for region in left if region.is_negative]
    order = {id(region): number for number, region in enumerate(group)}
    return (sorted([*own, *shared], key=lambda region: order[id(region)]) for own in members)


def _home(point: _Region, drawn: Sequence[_Region]) -> int | None:
    """Which of the boxes and masks a point refines; None: none of them."""
    if len(drawn) == 1:
        return 0
    around = [(_area(region), number) for number, region in enumerate(drawn) if _holds(region, point)]
    return min(around)[1] if around else None


def _holds(region: _Region, point: _Region) -> bool:
    box, inner = region.shape.box_xyxy_px, point.shape.point
    return bool(box and inner and box[0] <= inner.x_px <= box[2] and box[1] <= inner.y_px <= box[3])


def _area(region: _Region) -> float:
    x0, y0, x1, y1 = region.shape.box_xyxy_px or (0, 0, 0, 0)
    return (x1 - x0) * (y1 - y0)


def _oldest(part: Sequence[_Region]) -> _Region:
    return next(region for region in part if not region.is_negative)


def _drawn_object(part: Sequence[_Region], config: LabelConfig) -> DrawnObject:
    first = _oldest(part)
    solid = next((region.shape for region in part if region.shape.point is None), Shape())
    prompt = ImagePrompt(
        prompt_id=first.id,
        points=tuple(region.shape.point for region in part if region.shape.point),
        # A mask prompt goes alone: the box around it would say the same once more, and less exactly.
        box_xyxy_px=None if solid.mask else solid.box_xyxy_px,
        mask=solid.mask,
        clip_xy_px=solid.clip_xy_px,
    )
    return DrawnObject(
        prompt=prompt,
        label_names=config.output(first.to_name).known_labels(first.label_names),
        item_index=first.item_index,
        to_name=first.to_name,
        size_hw=first.size_hw,
        region_id=prompt_regions.digest(first.id, first.to_name, first.item_index),
    )
