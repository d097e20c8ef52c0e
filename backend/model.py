"""The same backend as a `LabelStudioMLBase`, for those who serve it with `label-studio-ml start backend`.

Works under label-studio-ml 1.0.9 (PyPI) and 2.x (git): the constructor's signature tells which. Both hand `predict` too little
(1.0.9: the config of whichever project was set up last) and answer errors with a traceback, so the request is read here and our
own answer is put in the place of theirs. The workers and Redis are those of the rest: `sam2-backend worker`, SAM2_REDIS_URL.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, after_this_request, has_request_context, jsonify, request
from label_studio_ml.api import init_app
from label_studio_ml.model import LabelStudioMLBase

from backend import logs
from backend.answers import UNEXPECTED, error_response
from backend.auth import Guard, hardened
from backend.dispatch import Dispatcher
from backend.predictor import Predictor
from sam2_backend.errors import Sam2BackendError
from sam2_backend.settings import Settings

log = logging.getLogger(__name__)

IS_2X = "project_id" in inspect.signature(LabelStudioMLBase.__init__).parameters


@functools.cache
def read_settings() -> Settings:
    """The settings of this process."""
    return Settings.from_env(os.environ)


@functools.cache
def predictor() -> Predictor:
    """One for the process: both generations make a model per request."""
    return Predictor(read_settings(), Dispatcher(read_settings()))


class Sam2Backend(LabelStudioMLBase):  # type: ignore[misc]  # typed nowhere
    """Clicks and boxes to masks, by the workers on the queue. Holds no model and nothing between requests."""

    TRAIN_EVENTS = ()

    def __init__(self, project_id: str | None = None, label_config: str | None = None, train_output: Any = None, **kwargs: Any) -> None:
        self._schema = label_config or ""
        arguments = {"project_id": project_id} if IS_2X else {"train_output": train_output, **kwargs}
        try:
            super().__init__(label_config=label_config, **arguments)
        except Exception:  # their parser; ours says at /setup and /predict what is wrong with the config
            super().__init__(label_config=None, **arguments)
        if not IS_2X:
            self.project_id = str(project_id or "")
            self.setup()

    def setup(self) -> None:
        """Called by 2.x itself, by us under 1.0.9; at /setup the project is judged as by our own server."""
        body = _request_body("/setup")
        if body is not None:
            _answer(lambda: predictor().setup(body.get("project"), body.get("schema"), body.get("hostname"), body.get("extra_params")))

    def predict(self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **_: Any) -> list[dict[str, Any]]:
        """One prediction per task, as plain dicts, which both generations pass on."""
        body = _request_body("/predict")
        if body is None:
            return predictor().predict(tasks, self._schema, context, str(self.project_id))
        config, project = body.get("label_config", self._schema), str(body.get("project") or "")
        answer = _answer(lambda: {"results": predictor().predict(tasks, config, context, project)})
        return answer["results"] if answer else []

    def fit(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing is trained."""
        return {}


def _request_body(path: str) -> dict[str, Any] | None:
    """The JSON object that came to `path`, if it is what is being served."""
    body = request.get_json(silent=True) if has_request_context() and request.path == path else None
    return body if isinstance(body, dict) else None


def _answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Do the work and put our answer, or our error, in the place of the framework's."""
    try:
        answer = work()
    except Exception as error:
        response = _failure(error)
        answer = None
    else:
        response = jsonify(answer)
    after_this_request(lambda _: response)
    return answer


def _failure(error: Exception) -> Response:
    known = error if isinstance(error, Sam2BackendError) else Sam2BackendError(UNEXPECTED)
    known.message = logs.scrubber(read_settings())(known.message)
    facts = {"endpoint": request.path, "code": known.code, "message": known.message}
    logs.event(log, "error", facts, level=logging.ERROR, exc_info=known is not error)
    return error_response(known)


def make_app(model_dir: str = "", basic_auth_user: str = "", basic_auth_password: str = "") -> Flask:
    """The framework's own app, serving `Sam2Backend`, with our authentication and without its tracebacks and training processes."""
    settings = read_settings()
    folder = model_dir or str(settings.data_dir / "label-studio-ml")
    app: Flask = init_app(Sam2Backend) if IS_2X else init_app(Sam2Backend, model_dir=folder)
    if basic_auth_user and basic_auth_password:
        settings = dataclasses.replace(settings, basic_auth_user=basic_auth_user, basic_auth_password=basic_auth_password)
    app.before_request(functools.partial(_admit, Guard(settings)))
    app.after_request(_without_traceback)
    app.view_functions["webhook"] = _webhook  # 1.0.9 starts a process for each event and keeps its body on disk
    if not IS_2X:
        from label_studio_ml.model import LabelStudioMLManager

        LabelStudioMLManager.fetch()  # a click that comes before any /setup would find no model
    return app


def _admit(guard: Guard) -> Response | None:
    try:
        guard.check(request)
    except Sam2BackendError as error:
        return error_response(error)
    return None


def _webhook() -> tuple[Response, int]:
    return jsonify({"result": {}, "status": "ok"}), 201


def _without_traceback(response: Response) -> Response:
    is_traceback = response.status_code >= 500 and b"Traceback" in response.get_data()
    return hardened(error_response(Sam2BackendError(UNEXPECTED)) if is_traceback else response)
