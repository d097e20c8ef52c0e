"""A dataset through real workers: what is stored must be what was stored before the fault."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import replace
from typing import Any

from clicking import CONFIG
from fake_label_studio import TOKEN, Studio
from ledger import Ledger
from worker_processes import Background

from backend.preannotate import Asked, run_preannotate
from backend.progress import Progress
from sam2_backend.settings import Settings

#: A grid of four points, that takes everything: quick, and seldom without a mask.
OPTIONS = {"points_per_side": "2", "pred_iou_thresh": "0", "stability_score_thresh": "0"}


class Annotating:
    """`sam2-backend preannotate` over tasks with these images, in a Label Studio of its own."""

    def __init__(self, settings: Settings, uris: list[str]) -> None:
        self.studio = Studio(CONFIG)
        self.studio.add_tasks(*({"image": uri} for uri in uris))
        self.studio.start()
        self._settings = replace(settings, label_studio_url=self.studio.url, label_studio_api_key=TOKEN)
        self._uris, self._out = uris, io.StringIO()
        self._running: Background | None = None

    def start(self) -> None:
        asked = Asked(1, "everything", OPTIONS)
        self._running = Background(lambda: run_preannotate(self._settings, asked, threading.Event(), Progress(out=self._out)))

    def finish(self) -> int:
        """The exit code."""
        assert self._running is not None
        code: int = self._running.result(240)
        return code

    @property
    def said(self) -> str:
        return self._out.getvalue()

    def results(self) -> list[list[Any]]:
        """Of each task what is stored: results as JSON without the ids, which are new each time."""
        return [[_shapes(stored["result"]) for stored in self.studio.predictions_of(task_id)] for task_id in self.studio.tasks]

    def judge(self, ledger: Ledger, expected: dict[str, Any]) -> None:
        for uri, stored in zip(self._uris, self.results(), strict=True):
            ledger.work_done += bool(stored)
            ledger.work_lost += [] if stored else [f"{uri}: {self.said}"]
            ledger.work_twice += [uri] if len(stored) > 1 else []
            ledger.wrong += [f"{uri}: other masks" for found in stored if found != expected[uri]]


def _shapes(result: list[dict[str, Any]]) -> str:
    return json.dumps([region["value"] for region in result], sort_keys=True)
