"""Which prediction an annotation is compared with, and which of its regions with which."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.evaluation_regions import EvaluatedRegion
from backend.mask_agreement import boundary_f, iou

LEAST_IOU = 0.1
"""Regions of different ids that overlap by less are not one object."""

#: How `dataset_jobs` names predictions; one of these without regions found nothing, any other stands in for what was never made.
_OF_A_MODE = re.compile(r" (boxes|everything|text|similar) [0-9a-f]{8}$")


@dataclass(frozen=True, slots=True)
class Pair:
    """A predicted region and what people made of it; either may be missing, never both.

    Attributes:
        prediction: None: people added the region.
        annotation: None: people deleted the region.
        iou, boundary_f: 0 to 1; None where one of the two is missing.
    """

    prediction: EvaluatedRegion | None
    annotation: EvaluatedRegion | None
    iou: float | None = None
    boundary_f: float | None = None

    @property
    def label(self) -> str:
        """What people say that it is; of a deleted region, what the prediction said."""
        region = self.annotation or self.prediction
        return region.label if region else ""

    @property
    def is_relabelled(self) -> bool:
        return bool(self.prediction and self.annotation and self.prediction.label != self.annotation.label)

    @property
    def is_unchanged(self) -> bool:
        """To the pixel, its label as well."""
        return self.iou == 1.0 and not self.is_relabelled

    @property
    def clicks(self) -> int | None:
        """Prompts that it took people: none for a copy that stayed as it was; None: the data do not tell."""
        if self.prediction and self.annotation and self.is_unchanged and self.prediction.region_id == self.annotation.region_id:
            return 0
        return self.annotation.clicks if self.annotation else None


def prediction_of(annotation: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], version: str = "") -> Mapping[str, Any] | None:
    """The prediction that an annotation is compared with.

    The one that it was copied from; else the one that it shares most region ids with; else the newest.

    Args:
        predictions: Of its task.
        version: Only predictions of this model version; empty: all.
    """
    usable = [item for item in predictions if _is_usable(item) and version in {"", item.get("model_version")}]
    parent = annotation.get("parent_prediction")
    copied = [item for item in usable if parent is not None and item.get("id") == parent]
    if copied:
        return copied[0]
    ids = _region_ids(annotation)
    return max(usable, key=lambda item: (len(ids & _region_ids(item)), _number(item.get("id"))), default=None)


def pairs(predicted: Sequence[EvaluatedRegion], annotated: Sequence[EvaluatedRegion]) -> list[Pair]:
    """Match regions one to one, those of one id first, then greedily those that overlap most.

    Regions of different ids are matched where they have the same label, or the prediction has none, and overlap by `LEAST_IOU`.

    Returns:
        Every region once, in the order of the annotation, deleted ones last.
    """
    partner = dict(_by_id(predicted, annotated))
    partner |= _by_overlap(predicted, annotated, partner)
    matched = [
        _pair(predicted[partner[index]], region) if index in partner else Pair(None, region) for index, region in enumerate(annotated)
    ]
    taken = set(partner.values())
    return matched + [Pair(region, None) for index, region in enumerate(predicted) if index not in taken]


def _pair(prediction: EvaluatedRegion, annotation: EvaluatedRegion) -> Pair:
    if prediction.mask == annotation.mask:
        return Pair(prediction, annotation, 1.0, 1.0)
    return Pair(prediction, annotation, iou(prediction.mask, annotation.mask), boundary_f(prediction.mask, annotation.mask))


def _by_id(predicted: Sequence[EvaluatedRegion], annotated: Sequence[EvaluatedRegion]) -> Iterator[tuple[int, int]]:
    """(index of the annotation, index of the prediction)."""
    at = {(region.region_id, region.place): index for index, region in reversed(list(enumerate(predicted)))}
    for index, region in enumerate(annotated):
        found = at.pop((region.region_id, region.place), None)
        if found is not None:
            yield index, found


def _by_overlap(predicted: Sequence[EvaluatedRegion], annotated: Sequence[EvaluatedRegion], partner: Mapping[int, int]) -> dict[int, int]:
    taken = set(partner.values())
    overlaps = [
        (iou(prediction.mask, region.mask), a, p)
        for a, region in enumerate(annotated)
        if a not in partner
        for p, prediction in enumerate(predicted)
        if p not in taken and _may_be_one(prediction, region)
    ]
    found: dict[int, int] = {}
    for overlap, a, p in sorted(overlaps, key=lambda entry: -entry[0]):
        if overlap >= LEAST_IOU and a not in found and p not in taken:
            found[a] = p
            taken.add(p)
    return found


def _may_be_one(prediction: EvaluatedRegion, annotation: EvaluatedRegion) -> bool:
    a, b = prediction.box_xyxy_px, annotation.box_xyxy_px
    overlap = a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    return overlap and prediction.place == annotation.place and prediction.label in {"", annotation.label}


def _is_usable(prediction: Mapping[str, Any]) -> bool:
    return bool(prediction.get("result")) or bool(_OF_A_MODE.search(str(prediction.get("model_version"))))


def _region_ids(item: Mapping[str, Any]) -> set[str]:
    result = item.get("result")
    return {str(entry.get("id")) for entry in result if isinstance(entry, Mapping)} if isinstance(result, list) else set()


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1
