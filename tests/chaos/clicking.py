"""Annotators: threads that click, judge every mask, and ask again as a client does that was told to wait."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import requests
from ledger import Ledger
from rules import SIZE_HW, mask_of_click

from backend import brush_rle, config_generator
from sam2_backend.errors import ERRORS_BY_CODE
from sam2_backend.masks import Mask

CONFIG = config_generator.generate(["Cat"], options={"model_preannotate": "everything"})
PROJECT = "1.1700000000"
N_THREADS, N_IMAGES = 8, 12
THINKING_S = 0.15
#: What a browser bears; a click is lost when all its tries take longer.
DEADLINE_S = 90.0
_LONGEST_PAUSE_S = 2.0

Judge = Callable[[dict[str, Any]], str]
Question = Callable[[int], tuple[dict[str, Any], Judge]]


def region(region_id: str, x_px: float, y_px: float, size_hw: tuple[int, int] = SIZE_HW) -> dict[str, Any]:
    """A positive click as Label Studio sends it."""
    height, width = size_hw
    value = {"x": 100 * x_px / width, "y": 100 * y_px / height, "width": 0.3, "keypointlabels": ["Cat"]}
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    names = {"id": region_id, "from_name": "point", "to_name": "image", "type": "keypointlabels"}
    return names | size | {"value": value, "is_positive": True}


class Asker:
    """Asks /predict until it is answered or the deadline is over, and writes down what came in between."""

    def __init__(self, url: str, ledger: Ledger) -> None:
        self._url, self._ledger = url, ledger
        self._session = requests.Session()
        self._session.headers["Connection"] = "close"  # one that is kept may be closed by the other side at any time

    def ask(self, body: dict[str, Any], what: str, judge: Judge) -> dict[str, Any] | None:
        """The prediction that `judge` finds nothing wrong with (it returns a sentence where it does); None: lost."""
        started = time.monotonic()
        while True:
            answer = self._try(body, what)
            fault = judge(answer) if answer else ""
            spent_s = time.monotonic() - started
            with self._ledger.lock:
                self._ledger.wrong += [f"{what}: {fault}"] if fault else []
                if answer and not fault:
                    self._ledger.slowest_s = max(self._ledger.slowest_s, spent_s)
                    return answer
                if spent_s > DEADLINE_S or fault:
                    self._ledger.lost.append(what)
                    return None
                self._ledger.again += 1

    def _try(self, body: dict[str, Any], what: str) -> dict[str, Any] | None:
        try:
            response = self._session.post(f"{self._url}/predict", json=body, timeout=DEADLINE_S)
        except requests.RequestException:
            with self._ledger.lock:
                self._ledger.cut_off += 1
            time.sleep(0.2)
            return None
        if response.status_code == 200:
            prediction: dict[str, Any] = response.json()["results"][0]
            return prediction
        self._note(response, what)
        time.sleep(min(float(response.headers.get("Retry-After", 0.3)), _LONGEST_PAUSE_S))
        return None

    def _note(self, response: requests.Response, what: str) -> None:
        try:
            error = response.json()["error"]
        except (ValueError, KeyError):
            error = {"code": "", "message": response.text}
        is_clear = error["code"] in ERRORS_BY_CODE and error["code"] != "internal_error" and error["message"].endswith((".", "!"))
        with self._ledger.lock:
            if is_clear and response.reason:
                self._ledger.in_words[error["code"]] += 1
            else:
                self._ledger.wrong.append(f"{what}: {response.status_code} {error}")


class Annotators:
    """Click from `start` to `finish`, and at least so many times.

    Args:
        question: The request of a click by its number, and what judges its answer.
    """

    def __init__(self, url: str, ledger: Ledger, least: int, question: Question) -> None:
        self._url, self._ledger, self._least, self._question = url, ledger, least, question
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._click, name=f"annotator-{n}", daemon=True) for n in range(N_THREADS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(DEADLINE_S + 30)
            assert not thread.is_alive(), "a click hangs"

    def _click(self) -> None:
        asker = Asker(self._url, self._ledger)
        while (number := next(self._numbers)) < self._least or not self._stopping.is_set():
            body, judge = self._question(number)
            if asker.ask(body, f"click {number}", judge):
                with self._ledger.lock:
                    self._ledger.right += 1
            time.sleep(THINKING_S)


def click_by_rule(number: int) -> tuple[dict[str, Any], Judge]:
    """A click on one of a few images; some wait for their encoder run, others (`ready`) are decoded together."""
    x_px, y_px = float(3 + 7 * number % 110), float(2 + 5 * number % 70)
    uri = f"http://images.test/{'ready' if number % 3 else 'new'}-{number % N_IMAGES}.png"
    expected = mask_of_click(uri, [(x_px, y_px, True)])
    return click_on(1000 + number, uri, region(f"c{number}", x_px, y_px)), lambda answer: judged(answer, expected)


def click_on(task_id: int, uri: str, *regions: dict[str, Any]) -> dict[str, Any]:
    """What Label Studio posts."""
    task = {"id": task_id, "data": {"image": uri}}
    return {"tasks": [task], "label_config": CONFIG, "project": PROJECT, "params": {"context": {"result": list(regions)}}}


def judged(answer: dict[str, Any], expected: Mask) -> str:
    """What is wrong with the answer to a click; empty: nothing."""
    if len(answer["result"]) != 1:
        return f"{len(answer['result'])} regions"
    found = brush_rle.decode_mask(answer["result"][0]["value"]["rle"], expected.shape)
    return "" if np.array_equal(found, expected) else "another mask"
