"""`sam2-backend export`: the boxes of a project's videos → masks of every object on every frame, as COCO, YouTube-VIS and DAVIS have them.

The open-source editor draws boxes only on videos. What a person drew of each object is propagated once more by the workers, this time for
its masks, and kept where the annotation says that the object is there. A task that was exported from the same boxes, options and model is
passed over, so an export that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from backend.coco_rle import coco_rle
from backend.data_uri import data_uri_bytes, is_data_uri
from backend.dispatch import Dispatcher
from backend.keyframes import SequenceKeyframe
from backend.label_config import LabelConfig, ObjectTag, parse_label_config
from backend.label_studio import LabelStudio
from backend.label_studio_process import free_port
from backend.masklet_files import ExportError, ExportFolder, Masklet, VideoMasklets
from backend.project_options import project_options
from backend.propagations import Propagations
from backend.supervisor import Stack
from backend.task_media import field_value, image_uri
from backend.video_predictor import PropagationsLike, failure
from backend.video_prompts import TYPE, VideoDrawing, VideoObject, is_on_video, prompts, video_drawings
from backend.video_regions import samples_of
from sam2_backend.errors import Sam2BackendError, SettingsError
from sam2_backend.masks import area_px, box_xyxy_px, mask_from_runs
from sam2_backend.messages import MediaRef
from sam2_backend.propagation_format import digest_of, session_of
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameMask, FrameSource, PropagateJob, PropagationState

Echo = Callable[[str], None]
Choice = Literal["auto", "annotations", "predictions"]

_LOOK_EVERY_S = 2.0
_READY_S = 300.0
MOST_OBJECTS_AT_A_TIME = 8
"""Objects are tracked independently of each other; this many share the encoder's work."""


def run_export(settings: Settings, project_id: int, folder: Path, choice: Choice = "auto", echo: Echo = print) -> int:
    """Export a project; 1 if a task failed.

    Without SAM2_REDIS_URL, Redis and workers are started for as long as it takes.

    Raises:
        SettingsError: LABEL_STUDIO_URL or LABEL_STUDIO_API_KEY is missing.
        LabelStudioError, ExportError: Label Studio or the folder cannot be used.
    """
    if not settings.label_studio_url or not settings.label_studio_api_key:
        raise SettingsError("Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY: the project is read from Label Studio.")
    files = ExportFolder(folder)
    if settings.redis_url:
        return _export(settings, project_id, files, choice, echo)
    with Stack(dataclasses.replace(settings, host="127.0.0.1", port=free_port(0)), echo) as stack:
        stack.wait_until_ready(_READY_S)
        return _export(stack.settings, project_id, files, choice, echo)


def _export(settings: Settings, project_id: int, files: ExportFolder, choice: Choice, echo: Echo) -> int:
    client, dispatcher = LabelStudio(settings.label_studio_url, settings.label_studio_api_key), Dispatcher(settings)
    try:
        exporter = Exporter(settings, dispatcher, Propagations(settings, dispatcher), files, echo)
        n_failed = exporter.export(client.project(project_id)["label_config"], client.tasks(project_id), choice)
    finally:
        client.close()
        dispatcher.close()
    return 1 if n_failed else 0


class Exporter:
    """Exports tasks, one after the other."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, propagations: PropagationsLike, files: ExportFolder, echo: Echo) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._propagations = propagations
        self._files = files
        self._echo = echo

    def export(self, label_config: str, tasks: Iterable[Mapping[str, Any]], choice: Choice) -> int:
        """Export every task that has boxes on a video. Returns how many could not be.

        Raises:
            ExportError: the labeling config has no <VideoRectangle>.
        """
        config = parse_label_config(label_config)
        if not any(config.video_outputs(tag.name) for tag in config.videos):
            raise ExportError("The project's labeling config has no <Video> with a <VideoRectangle>: there are no boxes to make masks of.")
        seen, failed = [], 0
        for task in tasks:
            entries = chosen_results(task, config, choice)
            if not entries:
                continue
            seen.append(int(task["id"]))
            try:
                self._task(task, config, entries)
            except Sam2BackendError as error:
                failed += 1
                self._echo(f"task {task['id']}: FAILED, {error.message} ({error.code})")
        self._files.forget_others(seen)
        n_videos, n_objects = self._files.summarize()
        self._echo(f"{n_objects} objects of {n_videos} videos exported" + (f"; {failed} tasks failed, run it again" if failed else ""))
        return failed

    def _task(self, task: Mapping[str, Any], config: LabelConfig, entries: Sequence[Mapping[str, Any]]) -> None:
        drawing, *others = video_drawings(entries, config, task, most_objects=len(entries))
        if others:
            self._echo(f"task {task['id']}: boxes on several videos; those on {drawing.to_name!r} are exported")
        jobs = self._jobs(task, config, drawing)
        made_from = digest_of([[job.session for job in jobs], [list(map(dict, _raw(drawn))) for drawn in drawing.objects]])
        if self._files.has(int(task["id"]), made_from):
            self._echo(f"task {task['id']}: exported before")
            return
        video = self._masklets(task, config.object_tag(drawing.to_name), drawing, jobs)
        self._files.write(dataclasses.replace(video, made_from=made_from))
        self._echo(f"task {task['id']}: {len(video.masklets)} objects on {video.n_frames} frames in Annotations/{video.name}")

    def _jobs(self, task: Mapping[str, Any], config: LabelConfig, drawing: VideoDrawing) -> list[PropagateJob]:
        """A job for every few objects, masks wanted."""
        options, _ = project_options(config.video_output(drawing.to_name, drawing.from_name), None)
        asked = dataclasses.replace(options.video, mask=options.mask, wants_masks=True)
        uri = image_uri(task, config.object_tag(drawing.to_name), None, self._settings)
        media = self._dispatcher.put_blob(data_uri_bytes(uri, self._settings.media_max_bytes)) if is_data_uri(uri) else MediaRef(uri)
        source, version = FrameSource((media,), "video", drawing.framerate, drawing.n_frames), self._dispatcher.model_version()
        jobs = []
        for group in _groups(drawing.objects):
            keyframes = tuple(keyframe for drawn in group for keyframe in prompts(_with_start(drawn), drawing.n_frames))
            if any(keyframe.prompt for keyframe in keyframes):
                session = session_of(source, (1, 1), keyframes, asked, version)
                jobs.append(PropagateJob(session, source, (1, 1), keyframes, asked, f"export of task {task['id']}"))
        return jobs

    def _masklets(self, task: Mapping[str, Any], tag: ObjectTag, drawing: VideoDrawing, jobs: Sequence[PropagateJob]) -> VideoMasklets:
        masklets = {drawn.object_id: Masklet(drawn.object_id, _label(drawn)) for drawn in drawing.objects}
        shown = {drawn.object_id: Lifespan(drawn.keyframes) for drawn in drawing.objects}
        uri = str(field_value(task, tag.value, tag)) if tag.value else tag.template
        video = VideoMasklets(int(task["id"]), video_name(task, uri), "", shown_uri(uri), drawing.framerate, (0, 0), drawing.n_frames)
        for job in jobs:
            state = self._wait(job, f"task {task['id']}")
            video.size_hw = state.size_hw
            video.n_frames = max([video.n_frames, *(int(samples_of(track).ls_frames.max(initial=0)) for track in state.tracks)])
            for mask in self._propagations.masks(job.session):
                if mask.object_id in shown and mask.grid_idx + 1 in shown[mask.object_id] and area_px(mask.runs):
                    _add(masklets[mask.object_id], mask)
        video.masklets = list(masklets.values())
        return video

    def _wait(self, job: PropagateJob, name: str) -> PropagationState:
        """Have a job done, however long it takes.

        Raises:
            Sam2BackendError: it failed, or somebody cancelled it.
        """
        self._propagations.start(job)
        told = -1
        while True:
            state = self._propagations.wait(job.session, _LOOK_EVERY_S)
            if state.phase == "done":
                return state
            if state.phase == "failed":
                raise failure(state)
            if state.phase == "cancelled":
                raise ExportError("its propagation was cancelled. Run the export again.")
            tenth = 10 * state.n_done // max(state.n_frames, 1)
            if tenth > told:
                self._echo(f"{name}: {state.phase}, {state.n_done} of {state.n_frames or '?'} frames")
                told = tenth


class Lifespan:
    """On which frames, from 1, an object is shown: from its first keyframe to one that is disabled, and again from the next."""

    def __init__(self, keyframes: Sequence[SequenceKeyframe]) -> None:
        self._frames = [keyframe.ls_frame for keyframe in keyframes]
        self._is_enabled = [keyframe.is_enabled for keyframe in keyframes]

    def __contains__(self, ls_frame: int) -> bool:
        index = bisect.bisect_right(self._frames, ls_frame) - 1
        return index >= 0 and (self._is_enabled[index] or self._frames[index] == ls_frame)


def chosen_results(task: Mapping[str, Any], config: LabelConfig, choice: Choice) -> list[Mapping[str, Any]]:
    """The boxes on videos of a task's newest annotation that was not skipped; else, or if asked for, of its newest prediction."""
    annotations = [item for item in task.get("annotations") or [] if not item.get("was_cancelled")]
    sources = {"annotations": annotations, "predictions": task.get("predictions") or []}
    for name in ("annotations", "predictions") if choice == "auto" else (choice,):
        for item in sorted(sources[name], key=lambda item: str(item.get("updated_at") or item.get("created_at")), reverse=True):
            found = [entry for entry in item.get("result") or [] if is_on_video(entry, config) and entry.get("type") == TYPE]
            if found:
                return found
    return []


def video_name(task: Mapping[str, Any], uri: str) -> str:
    """A folder's name: the task's id, and what its file is called as far as that may stand in a path."""
    stem = PurePosixPath(unquote(urlsplit(uri).path)).stem if not is_data_uri(uri) else ""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:60].strip("._-")
    return f"{task['id']}-{plain}" if plain else str(task["id"])


def shown_uri(uri: str) -> str:
    """An address as it may stand in a file: without its query, which may hold a signature, and without data."""
    return "data:" if is_data_uri(uri) else uri.partition("?")[0]


def _with_start(drawn: VideoObject) -> VideoObject:
    """An object that nobody drew (a prediction that was accepted) is tracked from the starts and ends of its lifespans."""
    if drawn.drawn:
        return drawn
    starts = [True, *(not keyframe.is_enabled for keyframe in drawn.keyframes[:-1])]
    keyframes = [
        dataclasses.replace(keyframe, is_ours=not (is_start or not keyframe.is_enabled))
        for keyframe, is_start in zip(drawn.keyframes, starts, strict=True)
    ]
    return dataclasses.replace(drawn, keyframes=tuple(keyframes))


def _groups(objects: Sequence[VideoObject]) -> Iterator[Sequence[VideoObject]]:
    return (objects[first : first + MOST_OBJECTS_AT_A_TIME] for first in range(0, len(objects), MOST_OBJECTS_AT_A_TIME))


def _label(drawn: VideoObject) -> str:
    names = drawn.region["value"].get("labels")
    return str(names[0]) if isinstance(names, list) and names else ""


def _raw(drawn: VideoObject) -> Iterator[Mapping[str, Any]]:
    yield {"label": _label(drawn), "id": drawn.object_id}
    yield from (keyframe.raw for keyframe in drawn.keyframes)


def _add(masklet: Masklet, mask: FrameMask) -> None:
    left, top, right, bottom = box_xyxy_px(mask.runs) or (0, 0, 0, 0)
    masklet.masks[mask.grid_idx] = coco_rle(mask_from_runs(mask.runs))
    masklet.boxes[mask.grid_idx] = (left, top, right - left, bottom - top)
    masklet.areas[mask.grid_idx] = area_px(mask.runs)
    masklet.scores[mask.grid_idx] = round(mask.score, 4)
