"""Labels → a labeling config that works well with this backend: `config_judge` finds nothing to say about it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from backend.config_judge import judge
from backend.project_options import OPTIONS
from sam2_backend.errors import LabelConfigError

_OUTPUT_TAGS = {"brush": "Brush", "bitmask": "Bitmask", "polygon": "Polygon", "rectangle": "Rectangle"}

_COLOURS = ("#E6194B", "#3CB44B", "#4363D8", "#F58231", "#911EB4", "#008080", "#9A6324", "#F032E6", "#808000", "#000075")
"""Told apart on photographs and by most eyes; used in turn."""


def generate(
    labels: Sequence[str],
    output: str = "brush",
    *,
    separated: bool = False,
    pages: bool = False,
    options: Mapping[str, str | float | bool] | None = None,
) -> str:
    """Write a labeling config.

    Args:
        labels: Class names, any text, each once.
        output: What masks become: brush, bitmask, polygon or rectangle.
        separated: One <Labels> tag for all tools, in place of the same labels in each tool.
        pages: Several images in each task, listed in the field `images`; else one, in the field `image`.
        options: `model_*` options for the output's tag; see `project_options.OPTIONS`.

    Returns:
        XML, one tag a line.

    Raises:
        LabelConfigError: there is no label, one is empty or given twice, the output is unknown, or `judge` finds fault with an option.
    """
    if output not in _OUTPUT_TAGS:
        raise LabelConfigError(f"Masks cannot become {output!r}. These are known: {', '.join(_OUTPUT_TAGS)}.")
    _check_labels(labels, options or {})
    suffix = "" if separated else "Labels"
    tag = _OUTPUT_TAGS[output]
    root = Element("View")
    SubElement(root, "Image", {"name": "image", ("valueList" if pages else "value"): "$images" if pages else "$image"})
    if separated:
        _labels(SubElement(root, "Labels", name="labels", toName="image"), labels)
    attributes = {name: str(value).lower() for name, value in (options or {}).items()}
    controls = [
        SubElement(root, tag + suffix, {"name": output, "toName": "image", "smart": "false", **attributes}),
        SubElement(root, "KeyPoint" + suffix, name="point", toName="image", smart="true"),
        SubElement(root, "Rectangle" + suffix, name="box", toName="image", smart="true"),
    ]
    if not separated:
        for control in controls:
            _labels(control, labels)
    return _judged(root)


def generate_video(labels: Sequence[str], *, framerate: str = "", options: Mapping[str, str | float | bool] | None = None) -> str:
    """Write a labeling config for boxes that are tracked through a video.

    Args:
        labels: Class names, any text, each once.
        framerate: Frames per second of the videos, or `$field` of the task; empty: Label Studio's 24.
        options: `model_*` options; see `project_options.OPTIONS`.

    Returns:
        XML, one tag a line.

    Raises:
        LabelConfigError: as `generate`, or the framerate is no number.
    """
    _check_labels(labels, options or {})
    root = Element("View")
    # allowEmpty: clicking a label off and on again is how an annotator asks for the track.
    _labels(SubElement(root, "Labels", name="labels", toName="video", allowEmpty="true"), labels)
    SubElement(root, "Video", {"name": "video", "value": "$video"} | ({"framerate": framerate} if framerate else {}))
    attributes = {name: str(value).lower() for name, value in (options or {}).items()}
    SubElement(root, "VideoRectangle", {"name": "box", "toName": "video", "smart": "true", **attributes})
    return _judged(root)


def _judged(root: Element) -> str:
    indent(root)
    config_xml: str = tostring(root, encoding="unicode")
    problems = judge(config_xml)
    if problems:
        raise LabelConfigError(problems[0])
    return config_xml


def _labels(parent: Element, labels: Sequence[str]) -> None:
    for number, label in enumerate(labels):
        SubElement(parent, "Label", value=label, background=_COLOURS[number % len(_COLOURS)])


def _check_labels(labels: Sequence[str], options: Iterable[str]) -> None:
    if not labels or not all(_is_text(label) for label in labels) or len(set(labels)) < len(labels):
        raise LabelConfigError("A labeling config needs at least one label, none empty, none twice, without control characters.")
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise LabelConfigError(f"There is no option {unknown[0]!r}. There are: {', '.join(OPTIONS)}.")


def _is_text(label: str) -> bool:
    """Whether an XML attribute can carry a label and give it back unchanged."""
    return bool(label.strip()) and all(unicodedata.category(c) not in {"Cc", "Cs"} and c not in "\ufffe\uffff" for c in label)
