"""A task → one DatasetJob for each of its images; the replies → one prediction, in the shape of the labeling config's output tag.

A prediction's model version names the model, the mode and a digest of every option that its regions depend on: the same again is not made
twice, anything else is. Predictions without a result stand in for it until it is there, under the same version and a remark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.drawn_boxes import drawn_boxes
from backend.label_config import LabelConfig, ObjectTag, OutputTag, parse_label_config
from backend.pending import PendingDataset
from backend.preannotation_options import MODE_OPTION, PreannotationOptions
from backend.project_options import ProjectOptions, project_options
from backend.prompt_regions import digest
from backend.pushes import Prediction
from backend.regions import regions
from backend.slow_jobs import dataset_job
from backend.task_media import image_uris
from sam2_backend.dataset_messages import DatasetJob, DatasetReply, Example, LabelledBox, LabelText
from sam2_backend.errors import LabelConfigError
from sam2_backend.messages import MediaRef, ObjectMask, to_wire
from sam2_backend.settings import Settings

NOT_READY, FAILED, NOTHING_DRAWN = "not ready", "failed", "no boxes"
_REMARKS = (NOT_READY, FAILED, NOTHING_DRAWN)


@dataclass(frozen=True, slots=True)
class Page:
    """One image of a task, on its way.

    Attributes:
        item_index: From 0; None: the task has one image.
        labels: Of each box, by its `box_id`.
    """

    output: OutputTag
    item_index: int | None
    options: ProjectOptions
    pending: PendingDataset
    labels: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """What there is to do for a task.

    Attributes:
        pages: None: there is nothing to do.
        problems: What was left out, in sentences.
    """

    task_id: int
    pages: tuple[Page, ...]
    problems: tuple[str, ...] = ()


class DatasetPlanner:
    """Plans the pre-annotation of one project's tasks.

    Args:
        media_ref: Puts a `data:` URI where workers can read it; other addresses stay as they are.
        overrides: Options of a command line, with `model_` before their names.
        examples: For mode `similar`.

    Raises:
        LabelConfigError: the labeling config cannot be read, has no image whose masks can be held, or no mode is set for any.
    """

    def __init__(
        self,
        settings: Settings,
        media_ref: Callable[[str], MediaRef],
        label_config: str,
        extra_params: Mapping[str, Any] | str | None = None,
        overrides: Mapping[str, Any] | None = None,
        examples: Sequence[Example] = (),
    ) -> None:
        self._settings, self._media_ref, self._examples = settings, media_ref, tuple(examples)
        self.config = parse_label_config(label_config)
        self.problems: list[str] = []
        self.images = tuple(self._with_mode(extra_params, overrides))
        if not self.images:
            raise LabelConfigError(_why_none(self.config))

    @property
    def mode(self) -> str:
        """The mode; where images differ, that of the first."""
        return str(self.images[0][2].preannotation.mode)

    @property
    def needs_drawings(self) -> bool:
        """Whether annotations, drafts and predictions of a task are read."""
        return any(options.preannotation.mode == "boxes" for _, _, options in self.images)

    @property
    def needs_examples(self) -> int:
        """How many examples of each label are looked for; 0: none."""
        return max((o.preannotation.similar.max_examples for _, _, o in self.images if o.preannotation.mode == "similar"), default=0)

    def with_examples(self, examples: Sequence[Example]) -> DatasetPlanner:
        """The same with examples for mode `similar`."""
        self._examples = tuple(examples)
        return self

    def version(self, model_version: str) -> str:
        """The model version of predictions that are made with all this. No comma: Label Studio's lists have them between versions."""
        asked = [
            [output.from_name, output.type, to_wire(self._job(MediaRef(""), output, options, ())), options.epsilon, options.min_area_px]
            for _, output, options in self.images
        ]
        return f"{model_version.replace(',', ' ')} {self.mode} {digest(asked)[:8]}"

    def plan(self, task: Mapping[str, Any], model_version: str) -> TaskPlan:
        """What there is to do for a task.

        Raises:
            TaskDataError: the task has no image where the labeling config says.
            MediaError: a `data:` URI does not decode.
        """
        task_id = int(task["id"])
        boxes, problems = drawn_boxes(task, self.own_versions(model_version)) if self.needs_drawings else ([], [])
        pages: list[Page] = []
        for tag, output, options in self.images:
            for page, uri in enumerate(image_uris(task, tag, self._settings)):
                drawn = [box for box in boxes if box.to_name == tag.name and box.page == page]
                if options.preannotation.mode == "boxes" and not drawn:
                    continue
                problems += _unknown(output, [label for box in drawn for label in box.labels])
                labelled = tuple(LabelledBox(str(n), box.box, box.labels[0] if box.labels else "") for n, box in enumerate(drawn))
                pending = dataset_job(self._job(self._media_ref(uri), output, options, labelled), task_id, tag.name, page, model_version)
                labels = {str(n): output.known_labels(box.labels) for n, box in enumerate(drawn)}
                pages.append(Page(output, page if tag.value_list else None, options, pending, labels))
        return TaskPlan(task_id, tuple(pages), tuple(dict.fromkeys(problems)))

    def prediction(self, plan: TaskPlan, replies: Sequence[DatasetReply]) -> Prediction:
        """What is stored for a task; without masks its result is empty and its score 0."""
        result: list[dict[str, Any]] = []
        scores: list[float] = []
        for page, reply in zip(plan.pages, replies, strict=True):
            for index, mask in enumerate(reply.masks):
                labels = page.labels.get(mask.source, page.output.known_labels((mask.label,) if mask.label else ()))
                name = digest(plan.task_id, page.output.to_name, page.item_index, page.options.preannotation.mode, mask.source or index)
                found = ObjectMask(name, mask.runs, mask.score)
                shown = regions(found, page.output, label_names=labels, region_id=name, item_index=page.item_index, options=page.options)
                result += shown
                scores += [mask.score] if shown else []
        return Prediction(result, round(sum(scores) / len(scores), 4) if scores else 0.0)

    def own_versions(self, model_version: str) -> list[str]:
        """Model versions of predictions that this makes, those that stand in for others among them."""
        version = self.version(model_version)
        return [version, *(f"{version} ({remark})" for remark in _REMARKS)]

    def replaced_versions(self, model_version: str) -> list[str]:
        """Model versions of predictions that, where they are empty, a result takes the place of."""
        return [model_version, *self.own_versions(model_version)[1:]]

    def _with_mode(
        self, extra_params: Mapping[str, Any] | str | None, overrides: Mapping[str, Any] | None
    ) -> list[tuple[ObjectTag, OutputTag, ProjectOptions]]:
        found = []
        for tag in self.config.images:
            if self.config.outputs(tag.name):
                output = self.config.output(tag.name)
                options, problems = project_options(output, extra_params, overrides)
                self.problems += problems
                if options.preannotation.mode:
                    found.append((tag, output, options))
        return found

    def _job(self, media: MediaRef, output: OutputTag, options: ProjectOptions, boxes: tuple[LabelledBox, ...]) -> DatasetJob:
        asked = options.preannotation
        source = output.label_source
        names = source.label_names if source else ()
        is_similar = asked.mode == "similar"
        return DatasetJob(
            media,
            asked.mode or "everything",
            boxes=boxes,
            label=names[0] if len(names) == 1 else "",
            texts=_texts(names, asked) if asked.mode == "text" else (),
            examples=self._examples if is_similar and media.uri else (),
            everything=dataclasses.replace(
                asked.everything, mask_threshold=options.mask.mask_threshold, multimask_output=options.mask.multimask
            ),
            similar=asked.similar,
            mask=options.mask,
            min_score=options.score_threshold,
            limit=asked.max_masks,
        )


def placeholder(version: str, remark: str) -> dict[str, Any]:
    """An empty prediction that stands in for one of this model version."""
    return {"result": [], "model_version": f"{version} ({remark})"}


def _texts(names: Sequence[str], asked: PreannotationOptions) -> tuple[LabelText, ...]:
    """What the detector looks for: the labels' names, or the phrases given for them; phrases alone where the config lists no labels."""
    phrases = dict(asked.phrases)
    return tuple(LabelText(name, phrases.get(name, name)) for name in names or phrases)


def _unknown(output: OutputTag, labels: Sequence[str]) -> list[str]:
    unknown = [label for label in dict.fromkeys(labels) if not output.known_labels((label,))]
    where = f"<{output.control.tag} name={output.from_name!r}>"
    return [f"Label {label[:60]!r} is not one of {where}: its regions stay without a label." for label in unknown]


def _why_none(config: LabelConfig) -> str:
    if not config.images:
        return 'The labeling config has no <Image> tag. Pre-annotation is for images: add <Image name="image" value="$image"/>.'
    if not any(config.outputs(tag.name) for tag in config.images):
        return _no_output(config)
    return f'No mode of pre-annotation is set. Write {MODE_OPTION}="everything" on the output\'s control tag, or name a --mode.'


def _no_output(config: LabelConfig) -> str:
    try:
        config.output(config.images[0].name)
    except LabelConfigError as error:
        return error.message
    return ""
