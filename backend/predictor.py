"""What a request to /predict or /setup means: the web tier without HTTP. Used by `app` and by `model`.

Only `id` and `data` of a task are read: Label Studio sends every draft, annotation and prediction of the task along.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import RedisError

from backend import logs
from backend.briefly import briefly
from backend.clicks import Click, click_facts, slowest, task_name
from backend.data_uri import data_uri_bytes, is_data_uri
from backend.dataset_jobs import DatasetPlanner
from backend.dispatch import Dispatcher
from backend.events import Event, media_digest, open_event, preannotate_events
from backend.label_config import LabelConfig, parse_label_config
from backend.next_tasks import Ahead
from backend.preannotator import Preannotator
from backend.project_options import ProjectOptions, project_options
from backend.projects import ProjectStore, judged, project_name
from backend.prompts import DrawnObject, drawn_objects
from backend.propagations import Propagations
from backend.regions import regions
from backend.task_media import image_uri, image_uris
from backend.tracking_plans import Planner
from backend.video_predictor import PropagationsLike, VideoPredictor
from sam2_backend.errors import LabelConfigError, MediaError, QueueDownError, RequestError, Sam2BackendError, SupersededError
from sam2_backend.messages import ImageJob, ImageReply, MediaRef, ObjectMask, WarmJob
from sam2_backend.settings import Settings

log = logging.getLogger(__name__)

MOST_WARMED_IMAGES = 64
"""Images embedded ahead of time for one request; "Retrieve predictions" may send thousands of tasks."""


@dataclass(frozen=True, slots=True)
class _Page:
    """The objects drawn on one image of the task."""

    objects: tuple[DrawnObject, ...]
    job: ImageJob
    options: ProjectOptions


class Predictor:
    """Turns what Label Studio asks into jobs, and their replies into predictions."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, propagations: PropagationsLike | None = None) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self.projects = ProjectStore(dispatcher.redis)
        self.record: Callable[[Event], None] = lambda _event: None
        """Called with what the status page is to show of requests without a click."""
        self._last_version = "sam2-backend"
        self.tracks = VideoPredictor(
            settings,
            propagations or Propagations(settings, dispatcher),
            Planner(settings, self._media_ref),
            dispatcher.redis,
            self.model_version,
            self._extra_params,
        )

        self.ahead = Ahead(settings, dispatcher, self._media_ref)
        self.preannotator = Preannotator(settings, dispatcher, self._media_ref, self._extra_params)

    def predict(self, tasks: Any, label_config: Any, context: Any, project: str = "") -> list[dict[str, Any]]:
        """Exactly one prediction per task; see `click`."""
        return self.click(tasks, label_config, context, project).predictions

    def click(self, tasks: Any, label_config: Any, context: Any, project: str = "", *, may_wait: bool = True) -> Click:
        """Answer one /predict.

        Args:
            tasks: Label Studio's tasks, as they came.
            label_config: The labeling config's XML.
            context: None: nobody clicked, the images are embedded ahead of time or, with `model_preannotate`, annotated; else `{"result": [region, …]}`, on the first task.
            project: `<id>.<unix time>`, as at /setup.
            may_wait: False: what is annotated ahead comes later.

        Returns:
            One prediction per task, with an empty `result` where nothing was asked, found, or a newer click came.

        Raises:
            RequestError: the request is not what Label Studio sends, or the prompts, the task or the labeling config cannot be used.
            MediaError, QueueError, ModelError: as the worker or the queue says.
        """
        started = time.perf_counter()
        _check_request(tasks, label_config, context)
        if len(tasks) == 1:  # one that is opened or drawn on; "Retrieve predictions" sends many
            self.ahead.seen(project, tasks[0].get("id"))
        if context is None:
            planner = self._planner(label_config, project_name(project))
            if planner:
                return self._annotate_ahead(planner, tasks, label_config, project_name(project), may_wait=may_wait)
            briefly(lambda: self._warm(tasks, label_config, project), None)
        drawn: Click | None = None
        if context and context.get("result"):
            answer = self.tracks.track if self.tracks.concerns(label_config, context, project_name(project)) else self._segment
            drawn = answer(tasks[0], label_config, context, project_name(project))
        version = (drawn.facts.get("model_version") if drawn else None) or self.model_version()
        # Without a score: Label Studio would show the annotator a prediction of "0.00%".
        predictions: list[dict[str, Any]] = [{"result": [], "model_version": version} for _ in tasks]
        if drawn is None:
            return Click(predictions, {"total": _ms_since(started)})
        predictions[0] = drawn.predictions[0] | {"model_version": version}
        return Click(predictions, drawn.timings_ms | {"total": _ms_since(started)}, drawn.facts)

    def _planner(self, label_config: str, project: str, extra_params: Any = None) -> DatasetPlanner | None:
        """How a project's tasks are annotated ahead; None: they are not, or Redis does not tell."""
        return briefly(lambda: self.preannotator.planner(label_config, project, extra_params), None)

    def _annotate_ahead(
        self, planner: DatasetPlanner, tasks: Sequence[Mapping[str, Any]], label_config: str, project: str, *, may_wait: bool
    ) -> Click:
        started = time.perf_counter()
        answer = self.preannotator.answer(planner, tasks, label_config, project, self.model_version(), may_wait=may_wait)
        spent_ms, problems = _ms_since(started), list(dict.fromkeys(answer.problems))
        facts = {"project": project, "mode": planner.mode, "tasks": len(tasks), "late": answer.n_late, "problems": len(answer.problems)}
        logs.event(log, "preannotate", facts | {"total_ms": round(spent_ms, 1)})
        n_made = sum(bool(prediction["result"]) for prediction in answer.predictions)
        for event in preannotate_events(project, tasks, n_made, answer.n_late, problems, spent_ms):
            self.record(event)
        return Click(answer.predictions, {"total": spent_ms})

    def setup(self, project: Any, schema: Any, hostname: Any = None, extra_params: Any = None) -> dict[str, Any]:  # noqa: ARG002  Label Studio's words
        """Judge a project's labeling config, keep its extra parameters, and say which model answers.

        `hostname` is what Label Studio believes its address to be, often one that nobody else can reach: not used.

        Raises:
            RequestError: project or schema is missing.
            LabelConfigError: no mask can be answered with this labeling config; Label Studio shows the sentence to the person connecting.
        """
        if not isinstance(project, str | int) or isinstance(project, bool) or not isinstance(schema, str):
            raise RequestError("/setup needs `project` and `schema`, the labeling config's XML, both as text.")
        seen = judged(str(project), schema, extra_params)
        if briefly(lambda: self.projects.remember(seen), otherwise=True):
            level = logging.WARNING if seen.unusable or seen.problems else logging.INFO
            said = {"unusable": seen.unusable or "no", "problems": " ".join(seen.problems) or "none"}
            logs.event(log, "setup", {"project": seen.name} | said, level=level)
        if seen.unusable:
            raise LabelConfigError(seen.unusable)
        self.ahead.connected(seen.name)
        version, planner = self.model_version(), self._planner(schema, seen.name, seen.extra_params)
        return {"model_version": planner.version(version) if planner else version, "problems": list(seen.problems)}

    def model_version(self) -> str:
        """What the workers serve, or served last; never waits for a Redis that hangs."""
        self._last_version = briefly(self._dispatcher.model_version, self._last_version)
        return self._last_version

    def _warm(self, tasks: Sequence[Mapping[str, Any]], label_config: str, project: str) -> None:
        """Have the tasks' images embedded; whatever goes wrong is logged, because nobody waits for it."""
        problems: list[Sam2BackendError] = []
        jobs: list[WarmJob] = []
        try:
            config = parse_label_config(label_config)
            jobs += itertools.islice(self._warm_jobs(tasks, config, problems), MOST_WARMED_IMAGES)
            self._dispatcher.warm(jobs, is_urgent=len(tasks) == 1)
        except (Sam2BackendError, RedisError) as error:
            problems.append(error if isinstance(error, Sam2BackendError) else QueueDownError(type(error).__name__))
        facts = {"project": project_name(project), "tasks": len(tasks), "images": len(jobs)}
        if problems:
            logs.event(log, "not_warmed", facts | {"problems": len(problems), "message": problems[0].message}, level=logging.WARNING)
        else:
            logs.event(log, "warm", facts)
        self.record(open_event(project_name(project), tasks, [job.media.uri for job in jobs], problems[0] if problems else None))

    def _warm_jobs(self, tasks: Sequence[Mapping[str, Any]], config: LabelConfig, problems: list[Sam2BackendError]) -> Iterator[WarmJob]:
        """A job for every page; a task whose data cannot be used adds its error to `problems` and is passed over."""
        for task, tag in itertools.product(tasks, config.images):
            try:
                yield from [WarmJob(self._media_ref(uri)) for uri in image_uris(task, tag, self._settings)[:MOST_WARMED_IMAGES]]
            except (RequestError, MediaError) as error:
                problems.append(error)

    def _segment(self, task: Mapping[str, Any], label_config: str, context: Mapping[str, Any], project: str) -> Click:
        config = parse_label_config(label_config)
        objects = drawn_objects(context, config, self._settings.max_prompts)
        if not objects:
            return Click([{"result": []}])
        pages = self._pages(task, config, objects, project)
        outcomes = self._dispatcher.segment([page.job for page in pages], self._settings.predict_wait_s)
        replies = [(page, reply) for page, reply in zip(pages, outcomes, strict=True) if isinstance(reply, ImageReply)]
        self._judge_failures([outcome for outcome in outcomes if isinstance(outcome, Sam2BackendError)], n_replies=len(replies), task=task)
        started = time.perf_counter()
        found, scores = _regions(replies, config)
        timings_ms = slowest([reply.timings_ms for _, reply in replies]) | {"regions": _ms_since(started)}
        score = round(sum(scores) / len(scores), 4) if scores else 0.0
        facts = click_facts(task, objects, [reply for _, reply in replies], score)
        facts["media"] = [media_digest(page.job.media.uri) for page, _ in replies]
        return Click([{"result": found, "score": score}], timings_ms, facts)

    def _pages(self, task: Mapping[str, Any], config: LabelConfig, objects: Sequence[DrawnObject], project: str) -> list[_Page]:
        """One job per image, in the order in which the images were first drawn on."""
        by_image: dict[tuple[Any, ...], list[DrawnObject]] = {}
        for drawn in objects:
            by_image.setdefault((drawn.to_name, drawn.item_index, drawn.size_hw), []).append(drawn)
        return [self._page(task, config, tuple(group), self._extra_params(project), project) for group in by_image.values()]

    def _extra_params(self, project: str) -> str:
        return self.projects.extra_params(project) if project else ""

    def _page(self, task: Mapping[str, Any], config: LabelConfig, group: tuple[DrawnObject, ...], extra_params: str, project: str) -> _Page:
        first = group[0]
        options, _ = project_options(config.output(first.to_name), extra_params)
        media = self._media_ref(image_uri(task, config.object_tag(first.to_name), first.item_index, self._settings))
        drawing = f"{project}/{task_name([task])}/{first.item_index}/{first.prompt.prompt_id}"
        job = ImageJob(media, first.size_hw, tuple(drawn.prompt for drawn in group), options.mask, drawing)
        return _Page(group, job, options)

    def _media_ref(self, uri: str) -> MediaRef:
        return self._dispatcher.put_blob(data_uri_bytes(uri, self._settings.media_max_bytes)) if is_data_uri(uri) else MediaRef(uri)

    def _judge_failures(self, failures: Sequence[Sam2BackendError], *, n_replies: int, task: Mapping[str, Any]) -> None:
        """One broken page does not cost the others their masks; with no page left, its error is the answer."""
        errors = [error for error in failures if not isinstance(error, SupersededError)]
        if errors and not n_replies:
            raise errors[0]
        for error in errors:
            logs.event(log, "page_failed", {"task": task_name([task]), "code": error.code, "message": error.message}, level=logging.WARNING)


def _check_request(tasks: Any, label_config: Any, context: Any) -> None:
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        raise RequestError("`tasks` must be a list of at least one task, each an object with `id` and `data`.")
    if not isinstance(label_config, str):
        raise RequestError("`label_config` must be the labeling config's XML, as text.")
    if context is not None and not isinstance(context, dict):
        raise RequestError("`params.context` must be null or an object with `result`, the list of regions drawn.")
    if context and not isinstance(context.get("result", []), list | None):
        raise RequestError("`params.context.result` must be a list of regions.")


def _regions(replies: Sequence[tuple[_Page, ImageReply]], config: LabelConfig) -> tuple[list[dict[str, Any]], list[float]]:
    """Every region found, in the order drawn, and the scores of the masks they come from."""
    found: list[dict[str, Any]] = []
    scores: list[float] = []
    for page, drawn, mask in _masks(replies):
        shapes = regions(
            mask,
            config.output(drawn.to_name),
            label_names=drawn.label_names,
            region_id=drawn.region_id,
            item_index=drawn.item_index,
            options=page.options,
            n_clicks=drawn.n_clicks,
        )
        found += shapes
        scores += [mask.score] if shapes else []
    return found, scores


def _masks(replies: Sequence[tuple[_Page, ImageReply]]) -> Iterator[tuple[_Page, DrawnObject, ObjectMask]]:
    for page, reply in replies:
        for drawn, mask in zip(page.objects, reply.masks, strict=True):
            yield page, drawn, mask


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
