"""What a project asks of its masks: `model_*` attributes of the output's control tag, and the connection's extra parameters.

An attribute wins over an extra parameter of the same name: it stands nearer to the masks it speaks of. A wrong or unknown option is a
problem to report, never a reason to refuse a click.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.keyframes import MOST_FRAMES
from backend.label_config import OutputTag
from backend.option_kinds import Option, expected, parse_option
from backend.preannotation_options import PREANNOTATION_OPTIONS, PreannotationOptions, preannotation_options
from sam2_backend.messages import MaskOptions
from sam2_backend.video_messages import VideoOptions

PREFIX = "model_"
MANY_PX = 1 << 30
KEYFRAME_TOLERANCE_PCT = 0.5


OPTIONS: dict[str, Option] = {
    "model_score_threshold": Option(float, 0, 1, "Masks that the model itself rates lower are not shown."),
    "model_epsilon": Option(float, 0, 100, "Polygons: how far, in pixels, the outline may stray from the mask; 0 keeps every corner."),
    "model_fill_holes": Option(int, 0, MANY_PX, "Holes of up to this many pixels are filled."),
    "model_remove_sprinkles": Option(int, 0, MANY_PX, "Islands of up to this many pixels are removed."),
    "model_min_area": Option(int, 0, MANY_PX, "Objects of fewer pixels are not shown; of a polygon's parts, each counts alone."),
    "model_multimask": Option(
        bool, 0, 1, "A single click takes the best of three candidates (true) or the one that fits the click best on average (false)."
    ),
    "model_mask_threshold": Option(float, -32, 32, "Logit above which a pixel is mask; higher makes masks tighter."),
    "model_propagate": Option(bool, 0, 1, "Several images in a task: what is drawn on one page is found on all others."),
    "model_frames": Option(range, 1, MOST_FRAMES, "Frames (or pages) to track on, from 1: first-last, first- or -last."),
    "model_direction": Option(str, 0, 0, "Where objects are tracked to from what is drawn.", ("forward", "backward", "both")),
    "model_between_only": Option(bool, 0, 1, "A correction changes only what lies between it and the keyframes beside it."),
    "model_keyframe_tolerance": Option(
        float,
        0,
        100,
        "How far, in per cent of the frame, the box between two keyframes may be from the tracked one; less makes more keyframes.",
    ),
    "model_non_overlap": Option(bool, 0, 1, "Each pixel belongs to one object of the same label at most."),
} | PREANNOTATION_OPTIONS
OUTPUT_OPTION = "model_output"
"""Read by `label_config` from the labeling config alone: it decides which tag the other options are read from."""


@dataclass(frozen=True, slots=True)
class ProjectOptions:
    """What a project asks of its masks; the defaults ask nothing.

    Attributes:
        mask: What the worker needs to know.
        epsilon: Greatest distance in pixels between a mask's outline and its polygon; None: not said.
        score_threshold: Masks with a lower score are dropped.
        min_area_px: Objects, and parts of polygons, with fewer pixels are dropped.
        video: What the worker needs to know of a propagation beside `mask`.
        keyframe_tolerance_pct: How far interpolated boxes may be from the tracked ones, in per cent of the frame.
        propagate: What is drawn on one page goes to all.
        preannotation: What is done before anyone draws.
    """

    mask: MaskOptions = MaskOptions()
    epsilon: float | None = None
    score_threshold: float = 0.0
    min_area_px: int = 0
    video: VideoOptions = VideoOptions()
    keyframe_tolerance_pct: float = KEYFRAME_TOLERANCE_PCT
    propagate: bool = False
    preannotation: PreannotationOptions = PreannotationOptions()


def project_options(
    output: OutputTag, extra_params: Mapping[str, Any] | str | None, overrides: Mapping[str, Any] | None = None
) -> tuple[ProjectOptions, list[str]]:
    """Read a project's options.

    Args:
        output: The control tag that the masks go to.
        extra_params: The connection's extra parameters: an object, or its JSON text.
        overrides: Options of a command line, which win over both.

    Returns:
        The options, defaults in place of what is unknown or malformed; one sentence for each of those.
    """
    params, problems = _extra_params(extra_params)
    attributes = {name: value for name, value in output.control.attributes.items() if name.startswith(PREFIX)}
    where = f"<{output.control.tag} name={output.from_name!r}>"
    values: dict[str, Any] = {}
    for source, options in (("The extra parameters", params), (where, attributes), ("The command line", overrides or {})):
        for name, value in options.items():
            if name == OUTPUT_OPTION and options is attributes:
                continue
            problem = _read(name, value, values)
            problems += [f"{source}: {problem}"] if problem else []
    return _options(values), problems


def _options(values: Mapping[str, Any]) -> ProjectOptions:
    default = MaskOptions()
    return ProjectOptions(
        mask=MaskOptions(
            multimask=values.get("model_multimask", default.multimask),
            fill_holes_px=values.get("model_fill_holes", default.fill_holes_px),
            remove_sprinkles_px=values.get("model_remove_sprinkles", default.remove_sprinkles_px),
            mask_threshold=values.get("model_mask_threshold", default.mask_threshold),
        ),
        epsilon=values.get("model_epsilon"),
        score_threshold=values.get("model_score_threshold", 0.0),
        min_area_px=values.get("model_min_area", 0),
        video=_video_options(values),
        keyframe_tolerance_pct=values.get("model_keyframe_tolerance", KEYFRAME_TOLERANCE_PCT),
        propagate=values.get("model_propagate", False),
        preannotation=preannotation_options(values),
    )


def _video_options(values: Mapping[str, Any]) -> VideoOptions:
    default = VideoOptions()
    first, last = values.get("model_frames", (1, 0))
    return VideoOptions(
        direction=values.get("model_direction", default.direction),
        first_grid_idx=first - 1,
        last_grid_idx=last - 1,
        between_only=values.get("model_between_only", default.between_only),
        non_overlap=values.get("model_non_overlap", default.non_overlap),
    )


def _extra_params(value: Mapping[str, Any] | str | None) -> tuple[dict[str, Any], list[str]]:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}, ["The extra parameters are not JSON; they are ignored."]
    if value is None or isinstance(value, str):
        return {}, []
    if not isinstance(value, Mapping):
        return {}, ["The extra parameters must be a JSON object; they are ignored."]
    return {str(name).lower(): item for name, item in value.items()}, []


def _read(name: str, value: Any, into: dict[str, Any]) -> str:
    """Read one option; what is wrong with it, else ""."""
    if name == OUTPUT_OPTION:
        return 'model_output belongs into the labeling config, for instance <Image … model_output="NAME">; it is ignored here.'
    option = OPTIONS.get(name)
    if option is None:
        near = difflib.get_close_matches(name, [*OPTIONS, OUTPUT_OPTION], n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join([*OPTIONS, OUTPUT_OPTION])}."
        return f"there is no option {name[:60]!r}. {hint}"
    parsed = parse_option(option, value)
    if parsed is None:
        return f"{name}={str(value)[:60]!r} must be {expected(option)}; it is ignored."
    into[name] = parsed
    return ""
