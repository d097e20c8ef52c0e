"""What a context asks to have tracked: one plan for every video, and for every image sequence whose output says `model_propagate`.

A plan is a job for the workers and the way its results are shown. It depends on the request alone, so that the same request makes it again
when the results are pushed later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend import page_sequences
from backend.clicks import task_name
from backend.label_config import LabelConfig
from backend.project_options import ProjectOptions, project_options
from backend.prompts import drawn_objects
from backend.task_media import image_uri, image_uris
from backend.video_prompts import VideoDrawing, is_on_video, video_drawings
from backend.video_regions import mean_score, video_regions
from sam2_backend.messages import MediaRef
from sam2_backend.propagation_format import session_of
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameMask, FrameSource, Keyframe, PropagateJob, PropagationState, VideoOptions

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as far as plans depend on it.

    Attributes:
        task: Its `id` and `data`.
        extra_params: The connection's, as JSON text.
        model_version: Of the workers.
    """

    task: Mapping[str, Any]
    config: LabelConfig
    context: Mapping[str, Any]
    project: str
    extra_params: str
    model_version: str

    @property
    def title(self) -> str:
        """For people."""
        return f"project {self.project.split('.', 1)[0]} task {task_name([self.task])}"


@dataclass(frozen=True, slots=True)
class Plan:
    """One propagation and how it is shown.

    Attributes:
        job: None: nobody drew anything to start from; the regions stay as they are.
        n_objects: That it has.
        show: What is done so far → results.
        score: What is done so far → the prediction's score.
    """

    job: PropagateJob | None
    n_objects: int
    show: Callable[[PropagationState, Iterable[FrameMask]], list[Result]]
    score: Callable[[PropagationState], float]


def asks_for_tracking(context: Mapping[str, Any], config: LabelConfig, extra_params: str) -> bool:
    """Whether a context has regions on a video, or on a sequence of pages that is to be propagated through."""
    entries = [entry for entry in context.get("result") or [] if isinstance(entry, Mapping)]
    names = _propagated(config, extra_params)
    return any(is_on_video(entry, config) or str(entry.get("to_name")) in names for entry in entries)


class Planner:
    """Makes plans; `media_ref` turns an address of the task's into one that workers can read."""

    def __init__(self, settings: Settings, media_ref: Callable[[str], MediaRef]) -> None:
        self._settings = settings
        self._media_ref = media_ref

    def plans(self, asked: Asked) -> list[Plan]:
        """Every plan of a request, videos first.

        Raises:
            RequestError: a region, the task or the labeling config cannot be used.
        """
        entries = [entry for entry in asked.context.get("result") or [] if isinstance(entry, Mapping)]
        on_video = [entry for entry in entries if is_on_video(entry, asked.config)]
        drawings = video_drawings(on_video, asked.config, asked.task, self._settings.propagate_max_objects)
        return [self._video_plan(asked, drawing) for drawing in drawings] + self._page_plans(asked)

    def _video_plan(self, asked: Asked, drawing: VideoDrawing) -> Plan:
        options, _ = project_options(asked.config.video_output(drawing.to_name, drawing.from_name), asked.extra_params)
        job = None
        if any(keyframe.prompt for keyframe in drawing.keyframes):
            media = self._media_ref(image_uri(asked.task, asked.config.object_tag(drawing.to_name), None, self._settings))
            source = FrameSource((media,), "video", drawing.framerate, drawing.n_frames)
            job = _job(asked, source, (1, 1), drawing.keyframes, options)
        return Plan(
            job,
            len(drawing.objects),
            lambda state, _masks: video_regions(drawing, state.tracks, options.keyframe_tolerance_pct),
            lambda state: mean_score(state.tracks),
        )

    def _page_plans(self, asked: Asked) -> list[Plan]:
        names = _propagated(asked.config, asked.extra_params)
        drawn = drawn_objects(asked.context, asked.config, self._settings.max_prompts) if names else []
        return [
            self._page_plan(asked, sequence, names[sequence.to_name])
            for sequence in page_sequences.sequences([item for item in drawn if item.to_name in names])
        ]

    def _page_plan(self, asked: Asked, sequence: page_sequences.PageSequence, options: ProjectOptions) -> Plan:
        tag, output = asked.config.object_tag(sequence.to_name), asked.config.output(sequence.to_name)
        uris = image_uris(asked.task, tag, self._settings)
        page_sequences.check_pages(sequence, len(uris))
        source = FrameSource(tuple(map(self._media_ref, uris)), "pages", 1.0, len(uris))
        options = dataclasses.replace(options, video=dataclasses.replace(options.video, wants_masks=True))
        return Plan(
            _job(asked, source, sequence.size_hw, sequence.keyframes, options),
            len(sequence.objects),
            lambda _state, masks: page_sequences.page_regions(sequence, masks, output, options),
            lambda state: mean_score(state.tracks),
        )


def _propagated(config: LabelConfig, extra_params: str) -> dict[str, ProjectOptions]:
    """The image tags with several pages whose output says `model_propagate`, and their options."""
    outputs = {tag.name: config.outputs(tag.name) for tag in config.images if tag.value_list}
    options = {name: project_options(found[0], extra_params)[0] for name, found in outputs.items() if found}
    return {name: option for name, option in options.items() if option.propagate}


def _job(
    asked: Asked, source: FrameSource, size_hw: tuple[int, int], keyframes: Sequence[Keyframe], options: ProjectOptions
) -> PropagateJob:
    video: VideoOptions = dataclasses.replace(options.video, mask=options.mask)
    session = session_of(source, size_hw, tuple(keyframes), video, asked.model_version)
    return PropagateJob(session, source, size_hw, tuple(keyframes), video, asked.title)
