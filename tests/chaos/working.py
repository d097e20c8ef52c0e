"""Background work: images of a dataset, images embedded ahead, videos that are tracked, tasks that were opened. Judged by what is stored."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from clicking import CONFIG, PROJECT, Asker, judged
from fake_label_studio import TOKEN, Studio
from ledger import Ledger
from rules import N_FRAMES, lefts_of_video, mask_of_image
from worker_processes import Background

from backend.preannotate import Asked, run_preannotate, run_warm
from backend.progress import Progress
from sam2_backend.settings import Settings

VIDEO_CONFIG = """<View>
  <Labels name="labels" toName="video" allowEmpty="true"><Label value="Ball"/></Labels>
  <Video name="video" value="$video" framerate="25"/><VideoRectangle name="box" toName="video"/>
</View>"""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of each."""

    images: int
    warmed: int
    videos: int
    opened: int

    @property
    def jobs(self) -> int:
        return self.images + self.warmed + self.videos + self.opened


class Work:
    """The background jobs of one fault, each with an address of its own."""

    def __init__(self, settings: Settings, url: str, studio: Studio, ledger: Ledger, amount: Amount, name: str) -> None:
        self._settings = replace(settings, label_studio_url=studio.url, label_studio_api_key=TOKEN)
        self._url, self._studio, self._ledger, self._amount, self._name = url, studio, ledger, amount, name
        self._stopped = threading.Event()
        first = len(studio.tasks) + 1
        studio.add_tasks(*({"image": f"http://images.test/{name}-{n}.png"} for n in range(amount.images + amount.warmed + amount.opened)))
        studio.add_tasks(*({"video": f"http://videos.test/{name}-{n}.mp4"} for n in range(amount.videos)))
        ids = iter(range(first, first + amount.jobs))
        self.images, self.warmed = _take(ids, amount.images), _take(ids, amount.warmed)
        self.opened, self.videos = _take(ids, amount.opened), _take(ids, amount.videos)
        self._answered: set[int] = set()
        self._running: list[Background] = []
        self.commands: list[tuple[str, Progress, io.StringIO]] = []

    def start(self) -> None:
        """Everything is asked for when this returns, apart from what the commands keep in hand."""
        self._running += [
            Background(lambda: [self._open(task_id) for task_id in self.opened]),
            Background(lambda: [self._track(task_id) for task_id in self.videos]),
        ]
        for command, ids in ((run_preannotate, self.images), (run_warm, self.warmed)):
            out = io.StringIO()
            progress = Progress(out=out)
            asked = Asked(1, mode="everything", filters=[f"id={ids[0]}-{ids[-1]}"]) if ids else None
            self.commands.append((command.__name__, progress, out))
            if asked:
                self._running.append(Background(lambda c=command, a=asked, p=progress: c(self._settings, a, self._stopped, p)))  # type: ignore[misc]

    def finish(self, timeout_s: float) -> None:
        """Wait until all is done, and judge it."""
        deadline = time.monotonic() + timeout_s
        codes = [running.result(max(1.0, deadline - time.monotonic())) for running in self._running]
        said = "\n".join(out.getvalue() for _, _, out in self.commands)
        assert all(code == 0 for code in codes if isinstance(code, int)), said
        while time.monotonic() < deadline and not self._all_is_there():
            time.sleep(0.1)
        self._judge()

    def abandon(self) -> None:
        """End what still runs after a failure."""
        self._stopped.set()

    @property
    def n_stored(self) -> int:
        """Tasks of the dataset that have their prediction."""
        with self._studio.lock:
            return sum(bool(self._studio.predictions_of(task_id)) for task_id in self.images)

    def _all_is_there(self) -> bool:
        with self._studio.lock:
            return all(
                task_id in self._answered or any(p["result"] for p in self._studio.predictions_of(task_id))
                for task_id in (*self.images, *self.opened, *self.videos)
            )

    def _judge(self) -> None:
        ledger = self._ledger
        warmed = self.commands[1][1].counts.stored
        ledger.work_done += warmed
        ledger.work_lost += [f"{len(self.warmed) - warmed} warm jobs"] if warmed < len(self.warmed) else []
        with self._studio.lock:
            for task_id in (*self.images, *self.opened, *self.videos):
                stored = self._studio.predictions_of(task_id)
                whole = [prediction for prediction in stored if prediction["result"]]
                is_done = bool(whole) or task_id in self._answered
                ledger.work_done += is_done
                ledger.work_lost += [] if is_done else [f"task {task_id}: {stored}"]
                ledger.work_twice += [f"task {task_id}"] if len(stored) > 1 else []
                ledger.wrong += [
                    f"task {task_id}: {fault}" for fault in (self._fault(task_id, found["result"]) for found in whole) if fault
                ]

    def _fault(self, task_id: int, result: list[dict[str, Any]]) -> str:
        if task_id in self.videos:
            return _judged_track(result)
        return judged({"result": result}, mask_of_image(self._studio.tasks[task_id]["data"]["image"]))

    def _open(self, task_id: int) -> None:
        """Label Studio opens a task and stores what it is answered."""
        task = self._studio.tasks[task_id]
        body = {"tasks": [task], "label_config": CONFIG, "project": PROJECT, "params": {"context": None}}
        prediction = Asker(self._url, self._ledger).ask(body, f"opening task {task_id}", lambda _answer: "")
        with self._studio.lock:
            self._studio.n_added += 1
            stored = {"id": self._studio.n_added, "task": task_id} | (prediction or {"result": [], "model_version": ""})
            self._studio.predictions[self._studio.n_added] = stored

    def _track(self, task_id: int) -> None:
        task = self._studio.tasks[task_id]
        box = {"frame": 1, "enabled": True, "rotation": 0, "x": 10, "y": 20, "width": 30, "height": 40, "time": 0.04}
        value = {"framesCount": N_FRAMES, "duration": N_FRAMES / 25, "sequence": [box], "labels": ["Ball"]}
        drawn = {"id": f"r{task_id}", "from_name": "box", "to_name": "video", "type": "videorectangle", "value": value}
        body = {"tasks": [task], "label_config": VIDEO_CONFIG, "project": PROJECT, "params": {"context": {"result": [drawn]}}}
        answer = Asker(self._url, self._ledger).ask(body, f"tracking task {task_id}", lambda _answer: "")
        if answer and not _judged_track(answer["result"]):
            self._answered.add(task_id)  # asked again, it was done already: nothing is owed


def _take(ids: Iterator[int], count: int) -> list[int]:
    return [next(ids) for _ in range(count)]


def _judged_track(result: list[dict[str, Any]]) -> str:
    """Every frame but the drawn one has the box that all frames before it lead to."""
    lefts = lefts_of_video()
    sequence = result[0]["value"]["sequence"]
    off = [kf["frame"] for kf in sequence[1:] if abs(kf["x"] - 100 * lefts[kf["frame"] - 1]) > 0.02]
    return f"other boxes on frames {off}" if off else "" if len(sequence) > N_FRAMES / 2 else f"{len(sequence)} keyframes"
