"""Regions that people accepted → examples for mode `similar`: for each label a few, from as many tasks as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backend.label_config import LabelConfig, ObjectTag
from backend.prompt_regions import item_index, label_names, region_id, shape_kind, size_hw
from backend.prompt_shapes import shape
from backend.task_media import image_uri
from sam2_backend.dataset_messages import Box, Example
from sam2_backend.errors import PromptError, Sam2BackendError
from sam2_backend.masks import area_px
from sam2_backend.messages import MediaRef, RunLengths
from sam2_backend.settings import Settings

LEAST_AREA = 0.0005
"""Share of the image that an example covers at least: of less, little is left on the model's grid."""

#: After so many tasks with a label it is not looked for in more.
_MOST_TASKS_PER_LABEL = 64


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A region of an annotation that was not skipped."""

    task: Mapping[str, Any]
    tag: ObjectTag
    page: int
    label: str
    share: float
    mask: RunLengths | None
    box: Box


def choose_examples(
    tasks: Iterable[Mapping[str, Any]], config: LabelConfig, per_label: int, media_ref: Callable[[str], MediaRef], settings: Settings
) -> list[Example]:
    """The largest region of each label in each task, then the second largest, and so on until there are enough of the label.

    Args:
        tasks: With their annotations; read as far as needed.
        per_label: At most so many of each label.

    Returns:
        Examples, label by label; regions that cannot be read, or whose image cannot be named, are passed over.
    """
    by_label: dict[str, list[list[_Accepted]]] = {}
    for task in tasks:
        of_task: dict[str, list[_Accepted]] = {}
        for accepted in _accepted(task, config):
            of_task.setdefault(accepted.label, []).append(accepted)
        for label, regions in of_task.items():
            if len(by_label.setdefault(label, [])) < _MOST_TASKS_PER_LABEL:
                by_label[label].append(sorted(regions, key=lambda region: -region.share))
        if by_label and all(len(several) >= _MOST_TASKS_PER_LABEL for several in by_label.values()):
            break
    return [example for several in by_label.values() for example in _first(several, per_label, media_ref, settings)]


def _first(several: list[list[_Accepted]], count: int, media_ref: Callable[[str], MediaRef], settings: Settings) -> Iterator[Example]:
    for rank in range(max(map(len, several))):
        for region in (regions[rank] for regions in several if rank < len(regions)):
            if count <= 0:
                return
            try:
                media = media_ref(image_uri(region.task, region.tag, region.page, settings))
            except Sam2BackendError:
                continue
            count -= 1
            yield Example(media, region.label, region.mask, None if region.mask else region.box)


def _accepted(task: Mapping[str, Any], config: LabelConfig) -> Iterator[_Accepted]:
    images = {tag.name: tag for tag in config.images}
    for annotation in task.get("annotations") or []:
        regions = [] if annotation.get("was_cancelled") else annotation.get("result") or []
        labels = {region.get("id"): _names(region) for region in regions if _names(region)}
        for region in regions:
            tag, kind = images.get(str(region.get("to_name"))), shape_kind(region)
            names = _names(region) or labels.get(region.get("id"), ())
            if tag is None or kind in {"", "keypoint"} or not names:
                continue
            try:
                accepted = _read(task, tag, region, kind, names[0])
            except PromptError:
                continue
            if accepted.share >= LEAST_AREA:
                yield accepted


def _names(region: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        region_id(region)
        return label_names(region, shape_kind(region) or "none")
    except PromptError:
        return ()


def _read(task: Mapping[str, Any], tag: ObjectTag, region: Mapping[str, Any], kind: str, label: str) -> _Accepted:
    height, width = size = size_hw(region)
    drawn = shape(region, kind, size)
    left, top, right, bottom = drawn.box_xyxy_px or (0.0, 0.0, 0.0, 0.0)
    covered = area_px(drawn.mask) if drawn.mask else (right - left) * (bottom - top)
    box = (left / width, top / height, right / width, bottom / height)
    return _Accepted(task, tag, item_index(region) or 0, label, covered / (height * width), drawn.mask, box)
