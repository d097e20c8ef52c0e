"""Image sequences (`<Image valueList>` with `model_propagate`): what is drawn on some pages → one object through all pages, and back.

Prompts of one label on several pages are one object, corrected from page to page, as long as no page has two objects of that label. Where
one has, nobody can say which belongs to which, and each is an object of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from backend.label_config import OutputTag
from backend.project_options import ProjectOptions
from backend.prompt_regions import digest
from backend.prompts import DrawnObject
from backend.regions import regions
from sam2_backend.errors import PromptError
from sam2_backend.messages import ObjectMask
from sam2_backend.video_messages import FrameMask, Keyframe


@dataclass(frozen=True, slots=True)
class PageObject:
    """One object: what was drawn of it, at most once on a page.

    Attributes:
        object_id: Id of the oldest prompt.
    """

    object_id: str
    label_names: tuple[str, ...]
    drawn: tuple[DrawnObject, ...]


@dataclass(frozen=True, slots=True)
class PageSequence:
    """The objects on the pages of one image tag, in the order in which they were first drawn."""

    to_name: str
    size_hw: tuple[int, int]
    objects: tuple[PageObject, ...]

    @property
    def keyframes(self) -> tuple[Keyframe, ...]:
        """Prompts in pixels of the page, by object; pages count from 0."""
        return tuple(
            Keyframe(item.object_id, drawn.item_index or 0, dataclasses.replace(drawn.prompt, prompt_id=item.object_id))
            for item in self.objects
            for drawn in item.drawn
        )


def sequences(drawn: Sequence[DrawnObject]) -> list[PageSequence]:
    """Group drawn objects by image tag and object.

    Raises:
        PromptError: the pages drawn on have different sizes.
    """
    by_tag: dict[str, list[DrawnObject]] = {}
    for item in drawn:
        by_tag.setdefault(item.to_name, []).append(item)
    return [PageSequence(name, _common_size(items), _objects(items)) for name, items in by_tag.items()]


def check_pages(sequence: PageSequence, n_pages: int) -> None:
    """See that every page that was drawn on exists.

    Raises:
        PromptError: one does not.
    """
    last = max(keyframe.grid_idx for keyframe in sequence.keyframes)
    if last >= n_pages:
        raise PromptError(f"Page {last + 1} was drawn on, and the task has {n_pages}. Reload the task.")


def page_regions(sequence: PageSequence, masks: Iterable[FrameMask], output: OutputTag, options: ProjectOptions) -> list[dict[str, Any]]:
    """The results that show every mask on its page, objects in order, then pages.

    Ids are stable: the same for an object and page however often it is asked for; on the page where the object was first drawn, the one
    that a click without propagation gives.
    """
    by_object: dict[str, list[FrameMask]] = {item.object_id: [] for item in sequence.objects}
    for mask in masks:
        by_object[mask.object_id].append(mask)
    return [
        result
        for item in sequence.objects
        for mask in sorted(by_object[item.object_id], key=lambda mask: mask.grid_idx)
        for result in regions(
            ObjectMask(mask.object_id, mask.runs, mask.score),
            output,
            label_names=item.label_names,
            region_id=digest(item.object_id, sequence.to_name, mask.grid_idx),
            item_index=mask.grid_idx,
            options=options,
        )
    ]


def _common_size(drawn: Sequence[DrawnObject]) -> tuple[int, int]:
    sizes = {item.size_hw for item in drawn}
    if len(sizes) > 1:
        shown = " and ".join(f"{width} x {height}" for height, width in sorted(sizes)[:2])
        raise PromptError(f"The pages drawn on have different sizes ({shown}). Only pages of one size can be propagated through.")
    return drawn[0].size_hw


def _objects(drawn: Sequence[DrawnObject]) -> tuple[PageObject, ...]:
    by_label: dict[tuple[str, ...], list[DrawnObject]] = {}
    for item in drawn:
        by_label.setdefault(item.label_names, []).append(item)
    groups: list[list[DrawnObject]] = []
    for items in by_label.values():
        is_one = len({item.item_index or 0 for item in items}) == len(items)
        groups += [items] if is_one else [[item] for item in items]
    order = {id(item): number for number, item in enumerate(drawn)}
    groups.sort(key=lambda group: order[id(group[0])])
    return tuple(PageObject(group[0].prompt.prompt_id, group[0].label_names, tuple(group)) for group in groups)
