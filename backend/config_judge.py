"""What is missing from a labeling config, or unwise in it, in sentences: said at /setup and by `doctor`, where a person can read them.

Label Studio shows the annotator nothing of a later error: what is not said here is not said at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from backend.label_config import OUTPUT_KINDS, ControlTag, LabelConfig, ObjectTag, OutputTag, parse_label_config
from backend.project_options import OUTPUT_OPTION, PREFIX, project_options
from backend.video_prompts import FASTEST
from sam2_backend.errors import LabelConfigError

SMART_KINDS = ("keypoint", "rectangle")
"""The only tags whose smart tool sends anything on an image; ellipse and polygon have none, smart brushes draw by themselves."""

SILENT_SMART_KINDS = ("brush", "bitmask", "magicwand")
"""Tags whose smart tool sends nothing: it only adds a useless stop to the hotkey's cycle."""


def judge(config_xml: str, extra_params: Mapping[str, Any] | str | None = None) -> list[str]:
    """Judge a project's labeling config and options.

    Args:
        config_xml: The labeling config.
        extra_params: The connection's extra parameters: an object, or its JSON text.

    Returns:
        Sentences, the gravest first, none twice; empty: nothing is wrong. It never raises.
    """
    try:
        config = parse_label_config(config_xml)
    except LabelConfigError as error:
        return [error.message]
    on_images = (sentence for tag in _prompted_images(config) for sentence in _on_image(config, tag, extra_params))
    on_videos = (sentence for tag in _tracked_videos(config) for sentence in _on_video(config, tag, extra_params))
    return list(dict.fromkeys([*_on_objects(config), *on_images, *on_videos]))


def _prompted_images(config: LabelConfig) -> list[ObjectTag]:
    """The images that masks are drawn on; one that is there to be looked at or classified needs nothing of us."""
    kinds = {kind + suffix for kind in {*SMART_KINDS, *OUTPUT_KINDS} for suffix in ("", "labels")}
    drawn_on = [tag for tag in config.images if any(control.kind in kinds for control in config.controls_of(tag.name))]
    return drawn_on or list(config.images[: 0 if _tracked_videos(config) else 1])


def _tracked_videos(config: LabelConfig) -> list[ObjectTag]:
    """The videos that boxes are drawn on; where there is nothing else, the first."""
    return [tag for tag in config.videos if config.video_outputs(tag.name)] or list(config.videos[: 0 if config.images else 1])


def _on_objects(config: LabelConfig) -> Iterator[str]:
    names = {tag.name for tag in config.objects}
    for control in config.controls:
        if control.to_name not in names:
            known = ", ".join(sorted(names)) or "none"
            yield f"{_tag(control)} points at toName={control.to_name!r}, which does not exist (object tags: {known}). Correct toName."
    if not config.images and not config.videos:
        yield 'The labeling config has no <Image> tag and no <Video> tag. Add <Image name="image" value="$image"/>.'


def _on_image(config: LabelConfig, image: ObjectTag, extra_params: Mapping[str, Any] | str | None) -> Iterator[str]:
    outputs = config.outputs(image.name)
    if not outputs:
        yield _no_output(config, image)
        return
    output, controls = outputs[0], config.controls_of(image.name)
    yield from _on_choice(config, image, outputs)
    yield from _on_smart_tools(controls, image, output)
    yield from _on_labels(controls, output)
    options, problems = project_options(output, extra_params)
    yield from problems
    if options.propagate and not image.value_list:
        yield f"model_propagate has no effect: <{image.tag} name={image.name!r}> shows one image a task. Use valueList for several."
    yield from _on_misplaced_options(controls, output)


def _on_misplaced_options(controls: tuple[ControlTag, ...], output: OutputTag) -> Iterator[str]:
    for control in controls:
        names = [name for name in control.attributes if name.startswith(PREFIX) and name != OUTPUT_OPTION]
        if names and control != output.control:
            yield f"{', '.join(names)} on {_tag(control)} has no effect: the masks go to {_tag(output.control)}. Move it there."


def _on_video(config: LabelConfig, video: ObjectTag, extra_params: Mapping[str, Any] | str | None) -> Iterator[str]:
    """The editor sends boxes on a video when a selected region's label is changed, and at no other time."""
    try:
        output = config.video_output(video.name)
    except LabelConfigError as error:
        yield error.message
        return
    if output.control.smart is False:
        yield f'{_tag(output.control)} has smart="false": Label Studio sends nothing of it. Write smart="true".'
    labels = output.labels_tag
    if labels is None:
        yield (
            f"The video {video.name!r} has no <Labels> tag, and a change of label is what starts tracking. "
            f'Add <Labels name="labels" toName="{video.name}" allowEmpty="true"> with a <Label>.'
        )
    elif labels.attributes.get("allowempty", "").strip().lower() != "true":
        yield f'{_tag(labels)} lacks allowEmpty="true": without it, tracking again needs a change to another label and back.'
    yield from _on_framerate(video)
    yield from project_options(output, extra_params)[1]
    yield from _on_misplaced_options(config.controls_of(video.name), output)


def _on_framerate(video: ObjectTag) -> Iterator[str]:
    text = video.attributes.get("framerate", "24").strip()
    try:
        is_right = text.startswith("$") or 0 < float(text) <= FASTEST
    except ValueError:
        is_right = False
    if not is_right:
        yield f"framerate={text[:60]!r} on <{video.tag} name={video.name!r}> is no number of frames per second: Label Studio takes 24. Correct it."


def _no_output(config: LabelConfig, image: ObjectTag) -> str:
    try:
        config.output(image.name)
    except LabelConfigError as error:
        return error.message
    return ""


def _on_choice(config: LabelConfig, image: ObjectTag, outputs: tuple[OutputTag, ...]) -> Iterator[str]:
    """Several tags could take the masks: which one does. A smart rectangle is a prompt tool and no rival."""
    named, taken = config.named_output(image.name), outputs[0]
    if named and taken.from_name != named:
        names = ", ".join(output.from_name for output in outputs)
        yield f"model_output={named!r} names no tag of {image.name!r} that can hold a mask (there are: {names}). Correct it."
    rivals = [o for o in outputs[1:] if not (o.kind == "rectangle" and o.control.smart is not False)]
    if rivals and not named:
        others = ", ".join(_tag(output.control) for output in rivals)
        yield (
            f"Masks of {image.name!r} go to {_tag(taken.control)}, not to {others}. "
            f'If another is meant, write model_output="NAME" on <{image.tag} name={image.name!r}>.'
        )


def _on_smart_tools(controls: tuple[ControlTag, ...], image: ObjectTag, output: OutputTag) -> Iterator[str]:
    if not any(control.smart is not False and _shape_kind(control) in SMART_KINDS for control in controls):
        yield (
            f"{image.name!r} has no smart tool to prompt with. Add a <KeyPointLabels> and a <RectangleLabels> tag "
            f'with toName="{image.name}", smart="true" and the labels of {_tag(output.control)}.'
        )
    for control in controls:
        if control.smart is not False and _shape_kind(control) in SILENT_SMART_KINDS:
            yield f'{_tag(control)} lacks smart="false": its smart tool takes part in the hotkey\'s cycle and sends no click.'


def _on_labels(controls: tuple[ControlTag, ...], output: OutputTag) -> Iterator[str]:
    source = output.label_source
    if source is None:
        yield f"{_tag(output.control)} has no labels and there is no <Labels> tag: masks come without a label."
        return
    if source.labels_come_from_task:
        return
    if not source.label_names:
        yield f"{_tag(source)} has no <Label> tags: masks come without a label."
    for control in controls:
        prompts = control.kind == "labels" or (control.smart is not False and _shape_kind(control) in SMART_KINDS)
        missing = [name for name in control.label_names if prompts and name not in source.label_names]
        if missing:
            names = ", ".join(repr(name) for name in missing)
            yield f"{_tag(source)} lacks the labels {names} of {_tag(control)}: masks prompted with them come without a label. Add them."


def _shape_kind(control: ControlTag) -> str:
    return control.kind.removesuffix("labels")


def _tag(control: ControlTag) -> str:
    return f"<{control.tag} name={control.name!r}>"
