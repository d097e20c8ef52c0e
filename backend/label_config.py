"""Labeling config → object tags, control tags, label names, and the control tag that masks go to.

As Label Studio's editor reads it: names of tags and attributes in any case, names of tags' `name` and labels as written, a label's
`alias` in place of its `value`. Only the config's text is read; what is unwise about it says `config_judge`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal
from xml.etree.ElementTree import Element, ParseError, fromstring

from sam2_backend.errors import LabelConfigError

OutputKind = Literal["brush", "bitmask", "polygon", "rectangle", "videorectangle"]

MOST_CHARACTERS = 1 << 20
"""Longest labeling config that is read; ten thousand labels take about half of it."""

OUTPUT_KINDS: tuple[OutputKind, ...] = ("brush", "bitmask", "polygon", "rectangle")
"""The control tags that can hold a mask of an image, or its box, best first."""

VIDEO_OUTPUT_KIND: OutputKind = "videorectangle"
"""The one control tag that can hold a track of a video."""

_WHAT_TO_ADD = 'Add a <BrushLabels>, <BitmaskLabels>, <PolygonLabels> or <RectangleLabels> tag with toName="{name}" and smart="false".'


@dataclass(frozen=True, slots=True)
class ObjectTag:
    """What is labelled: `<Image>`, `<Video>`, ….

    Attributes:
        tag: The tag as written.
        value: The task's field that holds the media ("image" of value="$image", also a path: "photo.url"); "" where `template` is set.
        value_list: The task's field that holds the list of pages; "": one page.
        template: The `value` attribute where it is no lone variable: an address, perhaps with `$fields` inside.
        attributes: Keys in lower case.
    """

    name: str
    tag: str
    value: str = ""
    value_list: str = ""
    template: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The tag in lower case."""
        return self.tag.lower()


@dataclass(frozen=True, slots=True)
class ControlTag:
    """A tag that holds results for one object tag; one whose toName lists several objects appears once for each.

    Attributes:
        tag: The tag as written.
        to_name: Name of the object tag.
        label_names: Of its own <Label> tags, in order.
        attributes: Keys in lower case.
    """

    name: str
    tag: str
    to_name: str
    label_names: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The tag in lower case: the `type` of its regions."""
        return self.tag.lower()

    @property
    def has_own_labels(self) -> bool:
        return self.kind.endswith("labels")

    @property
    def labels_come_from_task(self) -> bool:
        """The labels are in the task's data (value="$labels") or behind `apiUrl`, not in the config."""
        return self.attributes.get("value", "").startswith("$") or bool(self.attributes.get("apiurl"))

    @property
    def smart(self) -> bool | None:
        """None: not said, which Label Studio takes for true."""
        value = self.attributes.get("smart")
        return None if value is None else value.strip().lower() == "true"


@dataclass(frozen=True, slots=True)
class OutputTag:
    """The control tag that masks of one object tag go to.

    Attributes:
        labels_tag: The separate <Labels> tag that an output without own labels is labelled by; None: there is none, or no need.
    """

    control: ControlTag
    kind: OutputKind
    labels_tag: ControlTag | None = None

    @property
    def from_name(self) -> str:
        return self.control.name

    @property
    def to_name(self) -> str:
        return self.control.to_name

    @property
    def type(self) -> str:
        """The `type` of its regions: "brushlabels", "polygon", …."""
        return self.control.kind

    @property
    def label_source(self) -> ControlTag | None:
        """The tag whose labels its regions may carry."""
        return self.control if self.control.has_own_labels else self.labels_tag

    def known_labels(self, label_names: tuple[str, ...]) -> tuple[str, ...]:
        """The labels among `label_names` that its regions may carry; none left: the region stays without a label.

        Label Studio would store an unknown label without a word, and the export would hold a class that the project does not have.
        """
        source = self.label_source
        if source is None:
            return ()
        return label_names if source.labels_come_from_task else tuple(name for name in label_names if name in source.label_names)


@dataclass(frozen=True)
class LabelConfig:
    """A parsed labeling config, in document order."""

    objects: tuple[ObjectTag, ...]
    controls: tuple[ControlTag, ...]

    @cached_property
    def images(self) -> tuple[ObjectTag, ...]:
        return tuple(tag for tag in self.objects if tag.kind == "image")

    @cached_property
    def videos(self) -> tuple[ObjectTag, ...]:
        return tuple(tag for tag in self.objects if tag.kind == "video")

    def object_tag(self, to_name: str) -> ObjectTag:
        """The object tag of that name.

        Raises:
            LabelConfigError: there is none.
        """
        for tag in self.objects:
            if tag.name == to_name:
                return tag
        names = ", ".join(tag.name for tag in self.objects) or "none"
        raise LabelConfigError(f"The labeling config has no object tag named {to_name!r} (it has: {names}). Correct toName or the prompt.")

    def controls_of(self, object_name: str) -> tuple[ControlTag, ...]:
        return tuple(control for control in self.controls if control.to_name == object_name)

    def outputs(self, object_name: str) -> tuple[OutputTag, ...]:
        """Every control tag that could hold a mask of that object, the one that is taken first.

        `model_output="NAME"`, on the object tag or any of its control tags, decides. Else brush before bitmask, polygon and rectangle;
        within a kind tags with own labels first, then those that are not `smart="true"`: a smart rectangle is there to prompt with.
        """
        controls = self.controls_of(object_name)
        labels_tag = next((control for control in controls if control.kind == "labels"), None)
        named = self.named_output(object_name)
        outputs = [
            OutputTag(control, kind, None if control.has_own_labels else labels_tag)
            for kind in OUTPUT_KINDS
            for control in controls
            if control.kind in {kind, kind + "labels"}
        ]
        outputs.sort(
            key=lambda o: (o.from_name != named, OUTPUT_KINDS.index(o.kind), not o.control.has_own_labels, o.control.smart is True)
        )
        return tuple(outputs)

    def output(self, object_name: str) -> OutputTag:
        """The control tag that masks of that object go to.

        Raises:
            LabelConfigError: no control tag of that object can hold a mask or box.
        """
        outputs = self.outputs(object_name)
        if not outputs:
            what_to_add = _WHAT_TO_ADD.format(name=object_name)
            raise LabelConfigError(f"No control tag of {object_name!r} in the labeling config can hold a mask. {what_to_add}")
        return outputs[0]

    def video_outputs(self, object_name: str) -> tuple[OutputTag, ...]:
        """Every <VideoRectangle> of that video, with the <Labels> tag that labels it."""
        controls = self.controls_of(object_name)
        labels_tag = next((control for control in controls if control.kind in {"labels", "videolabels"}), None)
        return tuple(OutputTag(control, VIDEO_OUTPUT_KIND, labels_tag) for control in controls if control.kind == VIDEO_OUTPUT_KIND)

    def video_output(self, object_name: str, from_name: str = "") -> OutputTag:
        """The <VideoRectangle> of that video and name, or its first.

        Raises:
            LabelConfigError: there is none.
        """
        outputs = self.video_outputs(object_name)
        if not outputs:
            raise LabelConfigError(
                f"No control tag of the video {object_name!r} in the labeling config can hold a track. "
                f'Add <VideoRectangle name="box" toName="{object_name}" smart="true"/> and a <Labels> tag for it.'
            )
        return next((output for output in outputs if output.from_name == from_name), outputs[0])

    def named_output(self, object_name: str) -> str:
        """The value of `model_output` for that object; "": not said."""
        objects = [tag.attributes for tag in self.objects if tag.name == object_name]
        controls = [control.attributes for control in self.controls_of(object_name)]
        return next((a["model_output"] for a in [*objects, *controls] if a.get("model_output")), "")


@lru_cache(maxsize=32)
def parse_label_config(xml: str) -> LabelConfig:
    """Read a labeling config; the last few are kept, by their text.

    Raises:
        LabelConfigError: longer than `MOST_CHARACTERS`, not XML, or with a document type (which Label Studio refuses as well).
    """
    if len(xml) > MOST_CHARACTERS:
        raise LabelConfigError(f"The labeling config is longer than {MOST_CHARACTERS} characters. Shorten it.")
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise LabelConfigError("The labeling config has a document type or entities. Remove <!DOCTYPE …>.")
    try:
        root = fromstring(xml)  # noqa: S314  no document type: nothing to expand
    except (ParseError, ValueError) as error:
        reason = str(error) if isinstance(error, ParseError) else "it holds characters that are no text"
        raise LabelConfigError(f"The labeling config is not XML: {reason}. Correct it in the project's settings.") from error
    return _read(root)


def _read(root: Element) -> LabelConfig:
    objects: list[ObjectTag] = []
    controls: list[tuple[Element, dict[str, str]]] = []
    label_names: dict[Element, list[str]] = {}
    for element, owner in _with_owner(root):
        attributes = {key.lower(): value for key, value in element.attrib.items()}
        if element.tag.lower() == "label" and owner is not None:
            label_names.setdefault(owner, []).append(attributes.get("alias") or attributes.get("value", ""))
        elif _is_control(element):
            controls.append((element, attributes))
        elif attributes.get("name") and (attributes.get("value") or attributes.get("valuelist")):
            objects.append(_object_tag(element.tag, attributes))
    return LabelConfig(tuple(objects), tuple(tag for e, a in controls for tag in _control_tags(e.tag, a, label_names.get(e, []))))


def _with_owner(root: Element) -> Iterator[tuple[Element, Element | None]]:
    """Every element in document order with the nearest control tag around it; without recursion, so that depth cannot hurt."""
    stack: list[tuple[Element, Element | None]] = [(root, None)]
    while stack:
        element, owner = stack.pop()
        yield element, owner
        inner = element if _is_control(element) else owner
        stack.extend((child, inner) for child in reversed(element))


def _is_control(element: Element) -> bool:
    names = {key.lower() for key, value in element.attrib.items() if value}
    return {"name", "toname"} <= names


def _object_tag(tag: str, attributes: Mapping[str, str]) -> ObjectTag:
    value, value_list = attributes.get("value", ""), attributes.get("valuelist", "")
    is_field = value.startswith("$") and "$" not in value[1:] and not set(value) & set("/:?&= ,")
    return ObjectTag(
        name=attributes["name"],
        tag=tag,
        value=value[1:] if is_field else "",
        value_list=value_list.removeprefix("$"),
        template="" if is_field else value,
        attributes=attributes,
    )


def _control_tags(tag: str, attributes: Mapping[str, str], label_names: list[str]) -> list[ControlTag]:
    names = tuple(dict.fromkeys(name for name in label_names if name))
    targets = [name.strip() for name in attributes["toname"].split(",") if name.strip()]
    return [ControlTag(attributes["name"], tag, to_name, names, attributes) for to_name in targets]
