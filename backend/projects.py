"""What Label Studio said of each project at /setup: the connection's extra parameters, and our judgement of its labeling config.

Owner of `sam2:project:<project>` and `sam2:project-index` in Redis: the newest `MOST_PROJECTS`, each for `KEEP_S` after its last /setup.
/predict works without any of it; a Redis that does not answer costs a project its extra parameters where this process does not know them,
and the log says so.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis import Redis, RedisError

from backend import logs
from backend.config_judge import judge
from backend.label_config import parse_label_config
from sam2_backend.errors import LabelConfigError, QueueError

log = logging.getLogger(__name__)

KEY = "sam2:project:"
INDEX = "sam2:project-index"
MOST_PROJECTS = 200
MOST_PARAMS_CHARACTERS = 16_384
KEEP_S = 30 * 24 * 3600
FRESH_S = 5.0
"""How long this process trusts what it read; another web process may have taken a newer /setup."""


@dataclass(frozen=True, slots=True)
class Project:
    """One project as of its last /setup.

    Attributes:
        name: Label Studio's `<id>.<unix time of creation>`.
        unusable: Why no mask can be answered with this labeling config; empty: it can.
        problems: What is unwise, in sentences.
        extra_params: The connection's, as JSON text, which `project_options` reads; empty: none.
        seen_at: Unix seconds.
    """

    name: str
    unusable: str = ""
    problems: tuple[str, ...] = ()
    extra_params: str = ""
    seen_at: float = 0.0

    @property
    def title(self) -> str:
        """The id that people see in Label Studio's address."""
        return self.name.split(".", 1)[0]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Project:
        value = json.loads(text)
        return cls(**{**value, "problems": tuple(value["problems"])})


def project_name(project: Any) -> str:
    """A project's name as it may stand in a key and in a log line."""
    return logs.one_line(str(project), limit=200)


def judged(project: str, schema: str, extra_params: Any) -> Project:
    """What a /setup says of a project."""
    unusable = _why_unusable(schema)
    params, problems = _json_text(extra_params)
    if not unusable:
        problems += judge(schema, params)
    return Project(project_name(project), unusable, tuple(problems), params, time.time())


def _json_text(extra_params: Any) -> tuple[str, list[str]]:
    """The extra parameters as text, and what is wrong with their size."""
    try:
        text = extra_params if isinstance(extra_params, str) else "" if extra_params is None else json.dumps(extra_params)
        if len(text) <= MOST_PARAMS_CHARACTERS:
            return text, []
    except RecursionError:
        pass
    return "", [f"The extra parameters are longer than {MOST_PARAMS_CHARACTERS} characters, or nested too deep; they are ignored."]


def _why_unusable(schema: str) -> str:
    """Why nothing can be answered with this labeling config; empty: one image or video has a control tag that holds masks or tracks."""
    try:
        config = parse_label_config(schema)
        if not config.images and not config.videos:
            return "The labeling config has no <Image> tag and no <Video> tag. Add one, and a tag such as <BrushLabels> that points at it."
        is_usable = any(config.outputs(tag.name) for tag in config.images) or any(config.video_outputs(tag.name) for tag in config.videos)
        if not is_usable and config.images:
            config.output(config.images[0].name)
        elif not is_usable:
            config.video_output(config.videos[0].name)
    except LabelConfigError as error:
        return error.message
    return ""


class ProjectStore:
    """Projects in Redis, with a bounded copy in this process."""

    def __init__(self, redis: Callable[[], Redis]) -> None:
        self._redis = redis
        self._known: OrderedDict[str, tuple[float, Project | None]] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, project: Project) -> bool:
        """Keep what /setup said. True: it differs from what this process knew."""
        before = self._recall(project.name)[1]
        self._note(project.name, project)
        try:
            self._write(project)
        except (RedisError, QueueError, OSError) as error:
            logs.event(log, "project_not_stored", {"project": project.name, "reason": type(error).__name__}, level=logging.WARNING)
        return before is None or dataclasses.replace(before, seen_at=0) != dataclasses.replace(project, seen_at=0)

    def extra_params(self, name: str) -> str:
        """The connection's extra parameters as JSON text; empty where there are none or Redis does not answer."""
        age_s, project = self._recall(name)
        if age_s > FRESH_S:
            try:
                text: Any = self._redis().get(KEY + name)
                if text:
                    project = Project.from_json(text)
                elif project and time.time() - project.seen_at < KEEP_S:
                    self._write(project)  # a Redis that lost its data: what /setup said holds on
            except (RedisError, QueueError, OSError, ValueError, KeyError, TypeError) as error:
                logs.event(log, "project_not_read", {"project": name, "reason": type(error).__name__}, level=logging.WARNING)
            self._note(name, project)
        return project.extra_params if project else ""

    def newest(self, count: int = 50) -> list[Project]:
        """The projects seen last, from Redis, or from this process where Redis does not answer."""
        try:
            client = self._redis()
            names: Any = client.zrevrange(INDEX, 0, count - 1)
            texts: Any = client.mget([KEY + _text(name) for name in names]) if names else []
            return [Project.from_json(text) for text in texts if text]
        except (RedisError, QueueError, OSError, ValueError, KeyError, TypeError):
            with self._lock:
                return [project for _, project in reversed(self._known.values()) if project][:count]

    def _write(self, project: Project) -> None:
        client = self._redis()
        with client.pipeline(transaction=False) as pipe:
            pipe.set(KEY + project.name, project.to_json(), ex=KEEP_S)
            pipe.zadd(INDEX, {project.name: project.seen_at})
            pipe.zrange(INDEX, 0, -MOST_PROJECTS - 1)
            surplus = [_text(name) for name in pipe.execute()[-1]]
        if surplus:
            client.zrem(INDEX, *surplus)
            client.delete(*(KEY + name for name in surplus))

    def _recall(self, name: str) -> tuple[float, Project | None]:
        """Age in seconds (infinite: never read) and what was known."""
        with self._lock:
            read_at, project = self._known.get(name, (-float("inf"), None))
        return time.monotonic() - read_at, project

    def _note(self, name: str, project: Project | None) -> None:
        with self._lock:
            self._known[name] = (time.monotonic(), project)
            self._known.move_to_end(name)
            while len(self._known) > MOST_PROJECTS:
                self._known.popitem(last=False)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
