"""The web tier's HTTP: `create_app(settings)` wires the parts; every endpoint, and errors as answers. Knows no torch and no queue.

Connects to nothing until a request needs it, so that /health answers before Redis does.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import time
from typing import Any

from flask import Flask, Response, g, jsonify, request
from jinja2 import StrictUndefined

from backend import logs, metrics
from backend.admission import Admission
from backend.answers import error_response, known_error
from backend.auth import CHALLENGE, Guard, hardened, weaknesses
from backend.body_room import BodyRoom
from backend.clicks import STAGES, Click, task_name
from backend.dispatch import Dispatcher
from backend.events import click_event, error_event, track_event
from backend.fast_json import dumps
from backend.journal import Journal
from backend.journal_store import JournalStore
from backend.late_predictions import LatePredictions
from backend.next_tasks import WORK
from backend.predictor import Predictor
from backend.projects import project_name
from backend.propagations import Propagations
from backend.request_bodies import KNOWN_ACTIONS, json_object, webhook_action
from backend.slow_requests import SlowRequests
from backend.status import Readiness, propagation_facts, readiness
from backend.status_pages import StatusPages, installed_version
from backend.video_predictor import PropagationsLike
from sam2_backend.errors import AuthError, NotFoundError, OverloadedError, RequestError, Sam2BackendError
from sam2_backend.settings import Settings

log = logging.getLogger(__name__)

_SESSION = re.compile(r"[0-9a-f]{32}")
_LAST_WORDS_S = 1.0
_STRANGERS_APART_S = 600.0
_FORM = "application/x-www-form-urlencoded"


def create_app(settings: Settings, dispatcher: Dispatcher | None = None, propagations: PropagationsLike | None = None) -> Flask:
    """The WSGI app. Connects lazily; nothing is read from the environment."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]  # Flask's own provider has it
    app.jinja_env.undefined = StrictUndefined
    dispatcher = dispatcher or Dispatcher(settings)
    web = Web(settings, dispatcher, propagations or Propagations(settings, dispatcher))
    app.extensions |= {"pushes": web.pushes, "late_predictions": web.late_predictions, "journal": web.journal}
    app.before_request(web.admit)
    app.teardown_request(web.dismiss)
    app.after_request(web.count)
    app.register_error_handler(Exception, web.fail)
    web.pages.install(app)
    app.add_url_rule("/health", view_func=web.health)
    app.add_url_rule("/ready", view_func=web.ready)
    app.add_url_rule("/setup", view_func=web.setup, methods=["POST"])
    app.add_url_rule("/predict", view_func=web.predict, methods=["POST"])
    app.add_url_rule("/webhook", view_func=web.webhook, methods=["POST"])
    app.add_url_rule("/versions", view_func=web.versions, methods=["GET", "POST"])  # label-studio-ml 1.0.9 posts
    app.add_url_rule("/metrics", view_func=web.numbers)
    app.add_url_rule("/propagations", view_func=web.propagations)
    app.add_url_rule("/propagations/<session>/cancel", view_func=web.cancel, methods=["POST"])
    return app


def from_environ() -> Flask:
    """The app of a process of its own: `gunicorn "backend.app:from_environ()"`."""
    settings = Settings.from_env(os.environ)
    logs.configure(settings)
    for sentence in weaknesses(settings):
        logs.event(log, "unwise", {"message": sentence}, level=logging.WARNING)
    app = create_app(settings)
    for name in ("pushes", "late_predictions"):
        app.extensions[name].start()  # what an earlier process owed
    atexit.register(app.extensions["journal"].flush, _LAST_WORDS_S)
    return app


class Web:
    """The endpoints of one app, and what they share."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, propagations: PropagationsLike) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._propagations = propagations
        self._predictor = Predictor(settings, dispatcher, propagations)
        self._guard = Guard(settings)
        self._scrub = logs.scrubber(settings)
        store = JournalStore(dispatcher.redis)
        self.journal = Journal(store, self._scrub)
        self._slow = SlowRequests(self.journal.record)
        self._metrics = metrics.Metrics(dispatcher, propagations, store, self.journal.backlog)
        self.journal.listeners.append(self._metrics.count_event)
        self._stranger_at = -math.inf
        self._admission, self._bodies = Admission(settings.web_threads), BodyRoom(settings.max_request_bytes)
        self.pushes = self._predictor.tracks.pushes
        self.late_predictions = LatePredictions(settings, dispatcher, self._predictor.preannotator)
        self._predictor.preannotator.started = self.late_predictions.start
        self.pages = StatusPages(settings, dispatcher, self._predictor.projects, self.journal, store, self._readiness)
        for teller in (self._predictor, self._predictor.ahead, self.pushes, self.late_predictions):
            teller.record = self.journal.record

    def admit(self) -> None:
        g.started = time.perf_counter()
        self._guard.check(request)
        if request.endpoint != "health":
            self._admission.enter()
            g.is_admitted = True
            g.body_bytes = self._bodies.enter(request)

    def dismiss(self, _error: BaseException | None) -> None:
        self._bodies.leave(g.pop("body_bytes", 0))
        if g.pop("is_admitted", False):
            self._admission.leave()

    def count(self, response: Response) -> Response:
        self._metrics.count_request(request.endpoint or "unknown", response.status_code)
        return hardened(response)

    def fail(self, error: Exception) -> Response:
        """The one place where an error becomes an answer, a log line and a line of the status page."""
        known, status = known_error(error, self._settings.max_request_bytes)
        known.message = self._scrub(known.message)
        is_unexpected = known is not error and status >= 500
        level = logging.ERROR if status >= 500 else logging.WARNING
        facts = {"endpoint": request.endpoint or "unknown", "code": known.code, "status": status, "task": g.get("task", "-")}
        facts |= {"total_ms": round(_ms_since_start(), 1), "message": known.message}
        logs.event(log, "error", facts, level=level, exc_info=is_unexpected)
        self._metrics.count_error(known.code)
        if (request.endpoint == "predict" or is_unexpected) and self._is_news(known):  # what is wrong with a project stands under its name
            where = logs.one_line(request.path, limit=100)
            project, task = g.get("project", ""), g.get("task", "")
            event = error_event(project, task, where, known.code, known.message, _ms_since_start(), is_click=request.endpoint == "predict")
            self.journal.record(event)
        response = error_response(known, status)
        if isinstance(known, AuthError):
            response.headers["WWW-Authenticate"] = CHALLENGE
        return response

    def _is_news(self, error: Sam2BackendError) -> bool:
        """Strangers who try passwords must not push out what the journal tells of everybody else."""
        if not isinstance(error, AuthError):
            return True
        now = time.monotonic()
        if now - self._stranger_at < _STRANGERS_APART_S:
            return False
        self._stranger_at = now
        return True

    def health(self) -> Response:
        """That this process lives; nothing else is looked at. Label Studio allows 1 s."""
        return jsonify({"status": "UP", "model_class": "Sam2Backend", "version": installed_version()})

    def ready(self) -> tuple[Response, int]:
        state = self._readiness()
        return jsonify(state.to_json()), 200 if state.is_ready else 503

    def _readiness(self) -> Readiness:
        return readiness(self._settings, self._dispatcher, self._predictor.projects, self._propagations)

    def propagations(self) -> Response:
        """How far everything that is tracked is, those used last first."""
        return jsonify({"propagations": [propagation_facts(state) for state in self._propagations.recent()]})

    def cancel(self, session: str) -> Response:
        """Stop a propagation; what was found stays, and asking again goes on from there. The status page's button comes here as well."""
        is_button = request.mimetype == _FORM
        state = self._propagations.state(session) if _SESSION.fullmatch(session) else None
        if state is None and is_button:  # it went while the page was looked at
            return Response(status=303, headers={"Location": "../../"})
        if state is None:
            raise NotFoundError("There is no such propagation, or none any more. GET /propagations lists them.")
        self._propagations.cancel(session)
        logs.event(log, "cancel", {"session": session[:8], "title": state.title})
        if is_button:
            return Response(status=303, headers={"Location": "../../"})
        return jsonify({"session": session, "phase": "cancelled" if state.phase in {"waiting", "running"} else state.phase})

    def setup(self) -> Response:
        body = json_object(request.get_data(cache=False))
        return jsonify(self._predictor.setup(body.get("project"), body.get("schema"), body.get("hostname"), body.get("extra_params")))

    def versions(self) -> Response:
        return jsonify({"versions": [self._predictor.model_version()]})

    def numbers(self) -> Response:
        return Response(self._metrics.render(), content_type=metrics.CONTENT_TYPE)

    def predict(self) -> Response:
        body = json_object(request.get_data(cache=False))
        params = body.get("params") or {}
        if not isinstance(params, dict):
            raise RequestError("`params` must be an object; Label Studio puts the clicks into `params.context`.")
        g.task, g.project = task_name(body.get("tasks")), project_name(body.get("project") or "")
        with self._slow.request(g.project, g.task):
            click = self._click(body, params.get("context"))
        response = Response(dumps({"results": click.predictions}), mimetype="application/json")
        timings_ms = dict.fromkeys(STAGES, 0.0) | click.timings_ms | {"total": _ms_since_start()}
        response.headers["Server-Timing"] = ", ".join(f"{stage};dur={timings_ms[stage]:.2f}" for stage in STAGES)
        if "session" in click.facts:
            self._tell_of_track(click, timings_ms)
        elif click.facts:
            self._tell(click, timings_ms)
        return response

    def _click(self, body: dict[str, Any], context: Any) -> Click:
        """Answer; whoever waits holds one of the threads that may."""
        arguments = body.get("tasks"), body.get("label_config"), context, str(body.get("project") or "")
        with self._admission.waiting() as is_free:
            if context is not None and not is_free:
                raise OverloadedError(
                    "Every thread of the web tier waits for a mask already. Try again; if it lasts, start more workers.", retry_after_s=2
                )
            return self._predictor.click(*arguments, may_wait=is_free)

    def _tell(self, click: Click, timings_ms: dict[str, float]) -> None:
        spent = {f"{'rle' if stage == 'regions' else stage}_ms": round(timings_ms[stage], 1) for stage in STAGES}
        asked = {key: click.facts[key] for key in ("task", "image", "objects", "points", "cache")}
        logs.event(log, "click", asked | spent | {key: click.facts[key] for key in ("worker", "score")})
        if click.facts["cache"] != "superseded":
            self._metrics.observe_click(timings_ms)
        self.journal.record(click_event(g.project, click.facts, timings_ms, len(click.predictions[0]["result"])))

    def _tell_of_track(self, click: Click, timings_ms: dict[str, float]) -> None:
        asked = {key: click.facts[key] for key in ("task", "objects", "phase", "done", "frames", "session", "worker", "score")}
        logs.event(log, "track", asked | {"total_ms": round(timings_ms["total"], 1)})
        self.journal.record(track_event(g.project, click.facts, timings_ms))

    def webhook(self) -> tuple[Response, int]:
        """Note where people are at work, and no more: training is not this backend's work. Label Studio waits inside the annotator's Submit."""
        event = request.get_data(cache=False)
        action = webhook_action(event)
        known = action if action in KNOWN_ACTIONS else "unknown"
        self._metrics.count_webhook(known)
        logs.event(log, "webhook", {"action": action}, level=logging.DEBUG)
        if action in WORK:
            self._predictor.ahead.heard(event)
        return jsonify({"result": {}, "status": "ok" if known == action else "ignored"}), 201 if known == action else 200


def _ms_since_start() -> float:
    started: float = g.started
    return (time.perf_counter() - started) * 1e3
