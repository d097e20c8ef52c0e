"""Simulated annotators: they open tasks in order, look, click objects, correct them, and go on. One process, one thread, new connections.

Think times are drawn from a fixed seed, one generator for each annotator, so every server meets the same people. Bodies are cut from
ready-made pieces: what is measured shares the cores with this.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass, field

from backend.config_generator import generate

SIZE_WH = (1280, 720)
#: Medians and spreads of log-normal times, shortest and longest, in seconds.
LOOK_S, THINK_S = (2.0, 0.4, 1.0, 5.0), (1.6, 0.5, 0.5, 5.0)
OBJECTS, CLICKS = (2, 4), (1, 4)
#: Somebody alone meets nobody, however fast they work: they hurry, so that there is something to count.
ALONE_PACE = 0.4
#: What Label Studio sends along of a task that was worked on before.
BALLAST_BYTES = 20_000
_WARM_MS = 10.0
_STAGE = re.compile(rb"(\w+);dur=([\d.]+)")


@dataclass(slots=True)
class Asked:
    """One click that was answered. Milliseconds as the client saw them; `stages` as the answer says."""

    wall_ms: float
    stages: dict[str, float]
    is_first: bool = False

    @property
    def is_warm(self) -> bool:
        """The embedding was there when the click's turn came."""
        return self.stages.get("embed", 0.0) < _WARM_MS


@dataclass(slots=True)
class Tally:
    """What became of all requests."""

    clicks: list[Asked] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    n_tasks: int = 0


class Annotator:
    """One person with a browser behind Label Studio."""

    def __init__(self, number: int, pace: float, address: tuple[str, int], images_url: str, next_task: list[int], tally: Tally) -> None:
        self._rng, self._pace = random.Random(number), pace
        self._address, self._images_url, self._next_task, self._tally = address, images_url, next_task, tally

    async def work(self, ends_at: float) -> None:
        await asyncio.sleep(self._pace * self._rng.uniform(0, 2 * LOOK_S[0]))
        while time.monotonic() < ends_at:
            task, self._next_task[0] = self._next_task[0], self._next_task[0] + 1
            self._tally.n_tasks += 1
            await self._post(task, None)
            await asyncio.sleep(self._pause_s(LOOK_S))
            is_first = True
            for drawing in range(self._rng.randint(*OBJECTS)):
                regions: list[str] = []
                for click in range(self._rng.randint(*CLICKS)):
                    if time.monotonic() >= ends_at:
                        return
                    regions.append(self._region(f"{task}-{drawing}-{click}", is_positive=click % 3 != 2))
                    if asked := await self._post(task, regions):
                        asked.is_first, is_first = is_first, False
                        self._tally.clicks.append(asked)
                    await asyncio.sleep(self._pause_s(THINK_S))

    def _pause_s(self, times: tuple[float, float, float, float]) -> float:
        median, spread, least, most = times
        return self._pace * min(most, max(least, median * self._rng.lognormvariate(0, spread)))

    def _region(self, region_id: str, *, is_positive: bool) -> str:
        sign, x, y = str(is_positive).lower(), self._rng.uniform(20, 80), self._rng.uniform(20, 80)
        return _REGION % (region_id, sign, x, y)

    async def _post(self, task: int, regions: list[str] | None) -> Asked | None:
        context = "null" if regions is None else f'{{"result": [{", ".join(regions)}]}}'
        body = (_BODY % (task, f"{self._images_url}/{task}.jpg", context)).encode()
        started = time.perf_counter()
        try:
            status, stages = await asyncio.wait_for(_exchange(self._address, body), 100)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            status, stages = type(error).__name__, {}
        if status != "200":
            self._tally.errors[status] = self._tally.errors.get(status, 0) + 1
            return None
        return Asked((time.perf_counter() - started) * 1e3, stages)


async def _exchange(address: tuple[str, int], body: bytes) -> tuple[str, dict[str, float]]:
    """A connection of its own for each request, as Label Studio makes: (status, the stages in Server-Timing)."""
    reader, writer = await asyncio.open_connection(*address, limit=1 << 16)
    try:
        writer.write(b"POST /predict HTTP/1.1\r\nHost: load\r\nConnection: close\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        timing = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"server-timing:")), b"")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
    finally:
        writer.close()
    return head[9:12].decode(), {name.decode(): float(ms) for name, ms in _STAGE.findall(timing)}


async def annotate(n_annotators: int, seconds: float, address: tuple[str, int], images_url: str, next_task: list[int]) -> Tally:
    """Have so many people work for so long; a click that was begun is waited for."""
    tally, ends_at = Tally(), time.monotonic() + seconds
    pace = ALONE_PACE if n_annotators == 1 else 1.0
    people = [Annotator(number, pace, address, images_url, next_task, tally) for number in range(n_annotators)]
    await asyncio.gather(*(person.work(ends_at) for person in people))
    return tally


_REGION = (
    f'{{"original_width": {SIZE_WH[0]}, "original_height": {SIZE_WH[1]}, "image_rotation": 0, "from_name": "point", "to_name": "image", '
    '"id": "%s", "type": "keypointlabels", "is_positive": %s, '
    '"value": {"x": %.4f, "y": %.4f, "width": 0.3, "keypointlabels": ["Object"]}}'
)
_BODY = (
    '{"tasks": [{"id": %d, "data": {"image": "%s"}, "annotations": [{"result": "'
    + "x" * BALLAST_BYTES
    + '"}]}], "project": "1.1700000000", "label_config": '
    + json.dumps(generate(["Object"], "brush")).replace("%", "%%")
    + ', "params": {"login": null, "password": null, "context": %s}}'
)
