"""The pages that people read: the status of everything, of one project, of one task. Server-rendered, without scripts.

Each is JSON for whoever does not ask for HTML. Texts of others (titles, messages) are escaped by the templates.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, render_template, request

from backend import advice, page_words
from backend.answers import ENDPOINTS
from backend.dispatch import Dispatcher
from backend.events import Event
from backend.journal import Journal
from backend.journal_store import DAY_S, DAYS, JournalStore
from backend.latency_plots import Series, duration_text, gathered, plot
from backend.overview import FLUSH_S, Seen, in_tier_order, look, lookups, merged, redis_memory, tally_json, waiting
from backend.projects import MOST_PROJECTS, Project, ProjectStore
from backend.status import Readiness
from backend.tallies import Tally, Times, share_ready
from sam2_backend.errors import NotFoundError, Sam2BackendError
from sam2_backend.settings import Settings

WATCH_S = 10
PAGE_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
"""No script, nothing from elsewhere, no inline style."""

_TEMPLATES = Path(__file__).with_name("templates")
_STYLESHEET = (_TEMPLATES / "status.css").read_text()
_STYLE_DIGEST = hashlib.blake2b(_STYLESHEET.encode(), digest_size=6).hexdigest()
_LONGEST_TASK = 40
_STEP_OF_HOUR = _STEP_OF_DAY = 2
"""Minutes, and quarters of an hour, in one step of a picture."""


class StatusPages:
    """The pages of one app.

    Args:
        readiness: What is missing; never waits for a worker.
    """

    def __init__(
        self,
        settings: Settings,
        dispatcher: Dispatcher,
        projects: ProjectStore,
        journal: Journal,
        store: JournalStore,
        readiness: Callable[[], Readiness],
    ) -> None:
        self._settings, self._dispatcher, self._projects = settings, dispatcher, projects
        self._journal, self._store, self._readiness = journal, store, readiness

    def install(self, app: Flask) -> None:
        """Add the routes and what the templates use."""
        app.jinja_env.filters |= {
            "bytes": page_words.bytes_text,
            "percent": page_words.percent_text,
            "ms": duration_text,
            "utc": page_words.utc_text,
            "iso": page_words.iso_text,
            "count": page_words.count_text,
            "code": page_words.with_code,
            "who": advice.who,
            "meanwhile": advice.meanwhile,
            "in_tier_order": in_tier_order,
        }
        app.jinja_env.globals |= {
            "ago": page_words.ago_text,
            "share_ready": share_ready,
            "style": _STYLE_DIGEST,
            "version": installed_version(),
        }
        app.add_url_rule("/", view_func=self.index)
        app.add_url_rule("/tasks", view_func=self.task)
        app.add_url_rule("/projects/<path:project>", view_func=self.project)
        app.add_url_rule("/status.css", view_func=self.stylesheet)
        app.add_url_rule("/status.svg", view_func=self.icon)

    def index(self) -> Response:
        """Everything at a glance."""
        state = self._readiness()
        seen = look(self._journal, self._store, redis_answers=state.redis_answers)
        if not _wants_html():
            return jsonify({"status": "UP", "endpoints": list(ENDPOINTS), "ready": state.to_json(), "seen": seen.to_json()})
        return _page(
            "overview.html",
            root="",
            state=state,
            seen=seen,
            waiting=waiting(state),
            lookups=lookups(state.workers),
            plots=_plots(seen),
            slow=_slow_workers(seen.hour),
            redis=redis_memory(self._dispatcher.redis()) if state.redis_answers else None,
            max_queued=self._settings.max_queued,
        )

    def task(self) -> Response:
        """What happened to the requests of one task, `?task=`."""
        task = request.args.get("task", "").strip().lstrip("#")[:_LONGEST_TASK]
        state, now = self._readiness(), time.time()
        events, is_shared = self._of(state, lambda: self._store.of_task(task), lambda event: event.task == task)
        if not _wants_html():
            return jsonify({"task": task, "is_shared": is_shared, "events": [_event_json(event) for event in events]})
        names = {event.project for event in events if event.project}
        projects = [project for project in state.projects if project.name in names]
        return _page("task.html", root="", task=task, state=state, now=now, events=events, is_shared=is_shared, projects=projects)

    def project(self, project: str) -> Response:
        """One project, by Label Studio's number or by its full name."""
        state, now = self._readiness(), time.time()
        name, known = self._named(project, state)
        events, is_shared = self._of(state, lambda: self._store.of_project(name), lambda event: event.project == name)
        days, n_embedded = self._history(state, name, now)
        whole, is_unknown = merged(days), not known and not events
        if is_unknown and not _wants_html():
            raise NotFoundError(f"Nothing is known of project {project}. The status page lists the projects that are.")
        if not _wants_html():
            facts = {"project": name, "images_embedded": n_embedded, "last_days": tally_json(whole)}
            return jsonify(facts | {"events": [_event_json(event) for event in events]})
        dated = [(now - DAY_S * (DAYS - 1 - index), tally) for index, tally in enumerate(days)]
        errors, _ = self._of(state, self._store.errors, lambda event: event.is_error)
        groups = advice.grouped([event for event in errors if event.project == name])
        return _page(
            "project.html", 404 if is_unknown else 200, root="../", title=name.split(".", 1)[0], known=known, state=state, now=now, events=events, is_shared=is_shared,
            days=[(at, tally) for at, tally in reversed(dated) if tally.outcomes], whole=whole, n_embedded=n_embedded, groups=groups,
        )  # fmt: skip

    def stylesheet(self) -> Response:
        """Named by its digest in the pages, so that it may be kept for ever."""
        return Response(_STYLESHEET, mimetype="text/css", headers={"Cache-Control": "private, max-age=31536000, immutable"})

    def icon(self) -> Response:
        """A dot in the browser's tab: `?good` green, else red."""
        colour = "#1a7f37" if "good" in request.args else "#c62828"
        picture = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="{colour}"/></svg>'
        return Response(picture, mimetype="image/svg+xml", headers={"Cache-Control": "private, max-age=31536000"})

    def _of(self, state: Readiness, read: Callable[[], list[Event]], is_wanted: Callable[[Event], bool]) -> tuple[list[Event], bool]:
        """Events from Redis, or those of this process where Redis is away; and which of both."""
        if state.redis_answers:
            self._journal.flush(FLUSH_S)
            try:
                return read(), True
            except Sam2BackendError:
                pass
        return [event for event in self._journal.remembered() if is_wanted(event)], False

    def _named(self, text: str, state: Readiness) -> tuple[str, Project | None]:
        """The full name that a number or name stands for, the newest of several, and what /setup said of it."""
        for project in self._projects.newest(MOST_PROJECTS):
            if text in {project.name, project.title}:
                return project.name, project
        names = [event.project for event in self._journal.remembered()]
        if state.redis_answers:
            self._journal.flush(FLUSH_S)
            try:
                names += self._store.projects()
            except Sam2BackendError:
                pass
        return next((name for name in names if text in {name, name.split(".", 1)[0]}), text), None

    def _history(self, state: Readiness, name: str, now: float) -> tuple[list[Tally], int]:
        if state.redis_answers:
            try:
                return self._store.days(name, now), self._store.n_embedded(name)
            except Sam2BackendError:
                pass
        return [Tally()] * DAYS, 0


def installed_version() -> str:
    """Of this package."""
    try:
        return version("sam2-label-studio")
    except PackageNotFoundError:
        return "from source"


def _wants_html() -> bool:
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def _page(template: str, status: int = 200, **facts: Any) -> Response:
    watch_s = WATCH_S if "watch" in request.args else 0
    response = Response(render_template(template, watch_s=watch_s, **facts), status, mimetype="text/html")
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


def _plots(seen: Seen) -> list[tuple[Series, Any, list[tuple[str, Times]]]]:
    """The last hour and the last day: the picture, and its numbers in a few rows."""
    pairs = gathered([tally.clicks for tally in seen.minutes], _STEP_OF_HOUR)
    halves = gathered([tally.clicks for tally in seen.quarters], _STEP_OF_DAY)
    hour = Series("Last hour, in steps of 2 minutes", pairs, [(0, "60 min ago"), (14.5, "30"), (29, "now")])
    day = Series("Last day, in steps of 30 minutes", halves, [(0, "24 h ago"), (23.5, "12"), (47, "now")])
    ten = [(f"{60 - 10 * index} to {50 - 10 * index} min ago", times) for index, times in enumerate(gathered(pairs, 5))]
    three = [(f"{24 - 3 * index} to {21 - 3 * index} h ago", times) for index, times in enumerate(gathered(halves, 6))]
    return [(hour, plot(hour), ten), (day, plot(day), three)]


def _slow_workers(hour: Tally) -> frozenset[str]:
    """Workers whose median is more than twice that of all; of few clicks nothing is concluded."""
    usual_ms = merged([hour]).clicks.p50_ms
    return frozenset(name for name, times in hour.workers.items() if usual_ms and times.n >= 20 and (times.p50_ms or 0) > 2 * usual_ms)


def _event_json(event: Event) -> dict[str, Any]:
    names = ("at", "kind", "outcome", "words", "project", "task", "code", "worker", "total_ms")
    return {name: getattr(event, name) for name in names}
