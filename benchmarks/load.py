"""How do clicks fare when a team works? Simulated annotators against the real web tier, queue and workers, over loopback HTTP.

Side by side, in one run and on the same weights, stands a server with one lock for everyone (single_lock.py). `--fake` puts a decoder in place
that sleeps for 10 ms, so that what is left is our own overhead. People: see load_annotators.py; think times come from a fixed seed.

    python -m benchmarks.load                   (about six minutes: the shipped model, then the fake decoder)
    python -m benchmarks.load --quick           (one and a half)
    python -m benchmarks.load --fake --annotators 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from benchmarks.load_annotators import SIZE_WH, Tally, annotate
from benchmarks.load_fake_worker import DECODE_S
from benchmarks.load_images import serve_images
from benchmarks.load_servers import OURS_FAKE, Server

_COLUMNS = "server annotators clicks p50 p95 p99 first_p50 first_p95 warm% clicks/s errors web worker redis load"


@dataclass(frozen=True)
class Plan:
    """Which servers meet how many people, for how long. One annotator clicks seldom, and is watched for longer."""

    annotators: tuple[int, ...]
    seconds: float
    seconds_alone: float

    def seconds_of(self, n_annotators: int) -> float:
        return self.seconds_alone if n_annotators == 1 else self.seconds


def percentile(values: list[float], share: float) -> float:
    return round(float(np.percentile(values, share)), 1) if values else 0.0


def measured(server: Server, n_annotators: int, tally: Tally, seconds: float, cpu_s: dict[str, float]) -> dict:
    walls, firsts = [asked.wall_ms for asked in tally.clicks], [asked for asked in tally.clicks if asked.is_first]
    row = {
        "server": server.name,
        "annotators": n_annotators,
        "clicks": len(walls),
        "p50": percentile(walls, 50),
        "p95": percentile(walls, 95),
        "p99": percentile(walls, 99),
        "first_p50": percentile([asked.wall_ms for asked in firsts], 50),
        "first_p95": percentile([asked.wall_ms for asked in firsts], 95),
        "warm%": round(100 * sum(asked.is_warm for asked in firsts) / max(1, len(firsts)), 1),
        "clicks/s": round(len(walls) / seconds, 1),
        "errors": sum(tally.errors.values()),
        "tasks": tally.n_tasks,
        "error_kinds": tally.errors,
        "stages_p50": stages(tally),
        "overhead_p50": percentile(
            [asked.wall_ms - asked.stages.get("decode", 0.0) - asked.stages.get("embed", 0.0) for asked in tally.clicks], 50
        ),
    }
    shares = {kind: round(100 * spent / seconds) for kind, spent in cpu_s.items()}
    shares["worker"] = shares.pop("server", shares.get("worker", 0))
    return row | {"web": 0, "redis": 0} | shares


def stages(tally: Tally) -> dict[str, float]:
    names = {name for asked in tally.clicks for name in asked.stages}
    return {name: percentile([asked.stages.get(name, 0.0) for asked in tally.clicks], 50) for name in sorted(names)}


async def one_cell(server: Server, n_annotators: int, seconds: float, images_url: str) -> dict:
    before, own_before, started = server.cpu_s(), time.process_time(), time.perf_counter()
    tally = await annotate(n_annotators, seconds, ("127.0.0.1", server.port), images_url, server.next_task)
    spent_s = time.perf_counter() - started
    cpu_s = {kind: spent - before[kind] for kind, spent in server.cpu_s().items()}
    return measured(server, n_annotators, tally, spent_s, cpu_s | {"load": time.process_time() - own_before})


async def run_cells(servers: list[Server], plan: Plan) -> list[dict]:
    images, images_url = await serve_images(SIZE_WH)
    rows = []
    async with images:
        for server in servers:
            await annotate(2, 4, ("127.0.0.1", server.port), images_url, server.next_task)  # nobody's first request is counted
        for n_annotators in plan.annotators:
            for server in servers:
                rows.append(await one_cell(server, n_annotators, plan.seconds_of(n_annotators), images_url))
                print(
                    "".join(
                        f"{rows[-1].get(name, ''):>14}" if name == "server" else f"{rows[-1].get(name, ''):>10}"
                        for name in _COLUMNS.split()
                    ),
                    flush=True,
                )
    return rows


def run(servers: list[Server], plan: Plan) -> list[dict]:
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        return asyncio.run(run_cells(servers, plan))


def find(rows: list[dict], server: str, n_annotators: int) -> dict:
    return next((row for row in rows if (row["server"], row["annotators"]) == (server, n_annotators)), {})


def verdicts(rows: list[dict]) -> dict:
    """The targets, and how far we are from them."""
    one, twenty = (find(rows, "ours, 1 worker", n) for n in (1, 20))
    fake = find(rows, "fake, 1 worker", 20)
    found = {}
    if one and twenty:
        found["p95_of_20_to_p95_of_1 (<= 3)"] = round(twenty["p95"] / one["p95"], 2)
        found["warm_first_clicks_of_20 (>= 95)"] = twenty["warm%"]
    if fake:
        found["fake_p99_of_20_ms (<= 100)"] = fake["p99"]
        found["fake_overhead_p50_ms (<= 8)"] = fake["overhead_p50"]
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--annotators", default="", metavar="N,N", help="default: 1,5,20,50")
    parser.add_argument("--seconds", type=float, default=0, help="for each number of annotators; default: 14, and 36 for one")
    parser.add_argument("--quick", action="store_true", help="1 and 20 annotators, for a shorter time")
    parser.add_argument("--fake", action="store_true", help="the fake decoder alone")
    parser.add_argument("--real", action="store_true", help="the model alone")
    parser.add_argument("--only", default="", help="of the servers, those whose name has this in it")
    return parser.parse_args()


def main() -> None:
    options = parse()
    annotators = tuple(map(int, options.annotators.split(","))) if options.annotators else (1, 20) if options.quick else (1, 5, 20, 50)
    seconds, alone = (10.0, 16.0) if options.quick else (14.0, 36.0)
    plan = Plan(annotators, options.seconds or seconds, options.seconds or alone)
    print("".join(f"{name:>14}" if name == "server" else f"{name:>10}" for name in _COLUMNS.split()))
    rows = []
    if not options.fake:
        servers = [
            Server("ours, 1 worker", options.model, 1),
            Server("ours, 2 workers", options.model, 2),
            Server("single lock", options.model, 0),
        ]
        rows += run([server for server in servers if options.only in server.name], plan)
    if not options.real:
        fake = Plan(tuple(n for n in annotators if n in {1, 20}) or annotators, plan.seconds, min(plan.seconds_alone, 20.0))
        rows += run([Server("fake, 1 worker", "none", 1, OURS_FAKE)], fake)
    machine = f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
    found = verdicts(rows)
    for name, value in found.items():
        print(f"{name}: {value}")
    print(
        json.dumps({"benchmark": "load", "machine": machine, "model": options.model, "decode_s": DECODE_S, "targets": found, "rows": rows})
    )


if __name__ == "__main__":
    main()
