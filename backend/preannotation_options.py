"""What a project asks of pre-annotation: the mode, and its parameters under the names that they have in SAM's automatic mask generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from backend.option_kinds import Option
from sam2_backend.dataset_messages import DatasetMode, EverythingOptions, SimilarOptions

MODES: tuple[DatasetMode, ...] = get_args(DatasetMode)
MODE_OPTION = "model_preannotate"
_MANY_PX = 1 << 30

PREANNOTATION_OPTIONS: dict[str, Option] = {
    MODE_OPTION: Option(str, 0, 0, "Tasks get predictions before anyone clicks, by this mode.", MODES),
    "model_max_masks": Option(int, 0, 100_000, "Pre-annotation keeps at most so many masks of an image, the best; 0 keeps all."),
    "model_prompt": Option(
        dict, 0, 0, "Mode text: words that describe a label better than its name: `Cat: a tabby cat; Dog: a small dog`."
    ),
    "model_max_examples": Option(int, 1, 16, "Mode similar: regions that people accepted, per label, that are looked for elsewhere."),
    "model_split_parts": Option(bool, 0, 1, "Mode similar: parts that do not touch become regions of their own."),
    "model_points_per_side": Option(int, 1, 256, "Mode everything: points in a row of the grid that is asked about."),
    "model_points_per_batch": Option(int, 1, 4096, "Mode everything: points decoded at a time; more is faster on a GPU."),
    "model_pred_iou_thresh": Option(float, 0, 1, "Mode everything: masks with a lower estimated IoU are dropped."),
    "model_stability_score_thresh": Option(float, 0, 1, "Mode everything: masks less stable than this are dropped."),
    "model_stability_score_offset": Option(float, 0, 32, "Mode everything: how far the threshold is moved to see how stable a mask is."),
    "model_box_nms_thresh": Option(float, 0, 1, "Mode everything: of two masks whose boxes overlap by more (IoU), the lower is dropped."),
    "model_crop_n_layers": Option(int, 0, 3, "Mode everything: the image is also looked at in 4, then 16, then 64 crops."),
    "model_crop_nms_thresh": Option(float, 0, 1, "Mode everything: as `model_box_nms_thresh`, between crops."),
    "model_crop_overlap_ratio": Option(float, 0, 1, "Mode everything: how much crops overlap, as a share of the shorter side."),
    "model_crop_n_points_downscale_factor": Option(int, 1, 16, "Mode everything: the grid of each layer of crops is coarser by this."),
    "model_min_mask_region_area": Option(int, 0, _MANY_PX, "Mode everything: holes and islands of fewer pixels are removed."),
    "model_use_m2m": Option(bool, 0, 1, "Mode everything: each mask is given to the decoder once more, to be refined."),
}


@dataclass(frozen=True, slots=True)
class PreannotationOptions:
    """How tasks are annotated before anyone clicks.

    Attributes:
        mode: None: they are not.
        max_masks: At most so many of an image; 0: all.
        phrases: (label, words to look for), in place of the label's name.
        everything: Without what all masks have in common, which `MaskOptions` says.
    """

    mode: DatasetMode | None = None
    max_masks: int = 0
    phrases: tuple[tuple[str, str], ...] = ()
    everything: EverythingOptions = EverythingOptions()
    similar: SimilarOptions = SimilarOptions()


def preannotation_options(values: Mapping[str, Any]) -> PreannotationOptions:
    """From parsed options, by their names with `model_`."""
    names = {f.name for f in fields(EverythingOptions)}
    of_grid = {name: values[f"model_{name}"] for name in names if f"model_{name}" in PREANNOTATION_OPTIONS.keys() & values.keys()}
    default = SimilarOptions()
    return PreannotationOptions(
        mode=values.get(MODE_OPTION),
        max_masks=values.get("model_max_masks", 0),
        phrases=values.get("model_prompt", ()),
        everything=EverythingOptions(**of_grid),
        similar=SimilarOptions(
            max_examples=values.get("model_max_examples", default.max_examples),
            splits_parts=values.get("model_split_parts", default.splits_parts),
        ),
    )
