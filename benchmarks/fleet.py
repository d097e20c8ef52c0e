"""How does the pre-annotation of a dataset scale with workers, where the model costs time and no CPU?

Real worker processes with a model that sleeps, a real Redis of its own, and the command's own many hands. `jobs`: every image through the
queue and back. `tasks`: the same with a Label Studio in a process of its own, which is asked for each task's predictions and stores one; it
is the tests' stand-in, so its own time is none of Label Studio's. Linear is so many times the rate of one worker; `model busy` is the share
of their time that the workers spend in the model. All of it shares this machine's cores, so the CPU time of a task is told too: it is what
limits a fleet on few cores. A Redis or a Label Studio elsewhere would cost none here.

    python -m benchmarks.fleet [--workers 1 2 4 8] [--model-ms 20] [--seconds 5] [--rounds 3] [--level jobs|tasks]
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from backend.child_process import die_with_parent
from backend.config_generator import generate
from backend.dataset_jobs import DatasetPlanner
from backend.dataset_run import DatasetRun
from backend.dataset_studio import DatasetStudio
from backend.dispatch import Dispatcher
from backend.embedded_redis import server_arguments, server_command
from backend.progress import Progress
from backend.slow_jobs import SlowJobs
from backend.task_runner import Outcome, TaskRunner
from benchmarks.fleet_worker import VERSION
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
LABEL_CONFIG = generate(["Object"])
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
Row = Mapping[str, Any]
Work = Callable[[Row], Outcome]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--model-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=5.0, help="about so long each number of workers is measured")
    parser.add_argument("--level", choices=["jobs", "tasks"], default="jobs")
    parser.add_argument("--rounds", type=int, default=3, help="each number of workers is measured so often; its median rate counts")
    parser.add_argument("--profile", action="store_true", help="where the command's own time goes, for the largest fleet")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; the model sleeps {options.model_ms:g} ms; level {options.level}")
    # In turn, so that what else the machine does hits all sizes alike.
    rounds = [[measure(options, count) for count in options.workers] for _ in range(options.rounds)]
    fleets = [sorted(rows, key=lambda row: row["rate"])[len(rows) // 2] for rows in zip(*rounds, strict=True)]
    print("workers  tasks/s  of linear  model busy  CPU ms a task: command  a worker's  Redis  Label Studio     all  load")
    for row in fleets:
        row["of_linear"] = round(row["rate"] / (fleets[0]["rate"] / fleets[0]["workers"] * row["workers"]), 3)
        row["model_share"] = round(row["rate"] * options.model_ms / 1000 / row["workers"], 3)
        cpu = [row[f"{who}_cpu_ms"] for who in ("command", "workers", "redis", "studio", "all")]
        print(
            f"{row['workers']:7}  {row['rate']:7.1f}  {row['of_linear']:9.2f}  {100 * row['model_share']:8.0f} %  {cpu[0]:22.2f}  {cpu[1]:10.2f}"
            f"  {cpu[2]:5.2f}  {cpu[3]:12.2f}  {cpu[4]:6.2f}  {row['load']:4.1f}"
        )
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "model_ms": options.model_ms, "level": options.level}
    print(json.dumps({"benchmark": "fleet", **machine, "rounds": options.rounds, "fleets": fleets}))


def measure(options: argparse.Namespace, count: int) -> dict[str, float]:
    """One fleet, from nothing to nothing."""
    n_tasks = int(options.seconds * 1000 / options.model_ms * count)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis_server = stack.enter_context(redis_in(folder))
        settings = Settings(redis_url=f"unix://{folder}/redis.sock", data_dir=folder)
        workers = [stack.enter_context(worker(settings, f"w{number}", options.model_ms)) for number in range(count)]
        dispatcher = Dispatcher(settings)
        stack.callback(dispatcher.close)
        wait_until_all_serve(dispatcher, count)
        work, studio = stack.enter_context(
            tasks_level(settings, dispatcher) if options.level == "tasks" else jobs_level(settings, dispatcher)
        )
        run(settings, dispatcher, work, range(-50 * count, 0))  # connections, caches, imports
        pids = {"workers": [process.pid for process in workers], "redis": [redis_server.pid], "studio": studio, "command": [os.getpid()]}
        before = {who: cpu_s(numbers) for who, numbers in pids.items()}
        started = time.perf_counter()
        if options.profile and count == options.workers[-1]:
            profiled(lambda: run(settings, dispatcher, work, range(n_tasks)))
        else:
            run(settings, dispatcher, work, range(n_tasks))
        spent_s = time.perf_counter() - started
        spent_cpu_ms = {who: 1e3 * (cpu_s(numbers) - before[who]) / n_tasks for who, numbers in pids.items()}
    row = {"workers": count, "tasks": n_tasks, "rate": round(n_tasks / spent_s, 1), "load": round(os.getloadavg()[0], 1)}
    return row | {f"{who}_cpu_ms": round(ms, 3) for who, ms in (spent_cpu_ms | {"all": sum(spent_cpu_ms.values())}).items()}


def run(settings: Settings, dispatcher: Dispatcher, work: Work, numbers: range) -> None:
    """Every task through as many hands as the command has; one that fails ends the benchmark."""
    progress = Progress(out=io.StringIO())
    done = DatasetRun(settings, dispatcher, work, progress, threading.Event())
    done.run({"id": number, "project": 1, "data": {"image": f"http://images.test/{number}.png"}} for number in numbers)
    if done.failed or progress.counts.stored != len(numbers):
        raise SystemExit(f"{len(done.failed)} tasks failed: {done.failed[:3]}")


@contextmanager
def jobs_level(settings: Settings, dispatcher: Dispatcher) -> Iterator[tuple[Work, list[int]]]:
    jobs, planner = SlowJobs(settings, dispatcher), planner_for(settings)
    stopped = threading.Event()

    def work(row: Row) -> Outcome:
        plan = planner.plan(row, VERSION)
        replies = [jobs.dataset(page.pending, stopped) for page in plan.pages]
        planner.prediction(plan, replies)
        jobs.forget([page.pending for page in plan.pages])
        return Outcome("stored", n_images=len(replies))

    yield work, []


@contextmanager
def tasks_level(settings: Settings, dispatcher: Dispatcher) -> Iterator[tuple[Work, list[int]]]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=serve_label_studio, args=(sender,), daemon=True)
    process.start()
    url, token = receiver.recv()
    settings = dataclasses.replace(settings, label_studio_url=url, label_studio_api_key=token)
    stopped = threading.Event()
    studio = DatasetStudio(url, token, stopped)
    try:
        runner = TaskRunner(SlowJobs(settings, dispatcher), studio, planner_for(settings), 1, VERSION, stopped)
        yield runner.run, [process.pid]
    finally:
        studio.close()
        process.terminate()
        process.join()


def serve_label_studio(sender: Any) -> None:
    """The tests' Label Studio, whose tasks are whatever number is asked for."""
    sys.path.insert(0, str(ROOT / "tests/integration"))
    from fake_label_studio import TOKEN, Studio

    class AnyTask(dict):
        def __contains__(self, _key: object) -> bool:
            return True

    class OnceAsked(Studio):
        """Every task is asked for once, before it has any: the tests' own walks through all, which is none of the product's time."""

        def predictions_of(self, _task_id: int) -> list[dict[str, Any]]:
            return []

    studio = OnceAsked(LABEL_CONFIG)
    studio.tasks = AnyTask()
    studio.start()
    sender.send((studio.url, TOKEN))
    threading.Event().wait()


def planner_for(settings: Settings) -> DatasetPlanner:
    return DatasetPlanner(settings, MediaRef, LABEL_CONFIG, None, {"model_preannotate": "everything"})


@contextmanager
def redis_in(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*server_command(), *server_arguments(folder / "redis.sock")]
    with ended(subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)) as process:
        while not (folder / "redis.sock").exists():
            time.sleep(0.01)
        yield process


@contextmanager
def worker(settings: Settings, name: str, model_ms: float) -> Iterator[subprocess.Popen[bytes]]:
    env = os.environ | dataclasses.replace(settings, worker_name=name, log_level="warning").to_env()
    command = [sys.executable, "-m", "benchmarks.fleet_worker", str(model_ms)]
    with ended(subprocess.Popen(command, env=env, cwd=ROOT, preexec_fn=die_with_parent)) as process:
        yield process


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_until_all_serve(dispatcher: Dispatcher, count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(seen.state != "loading" for seen in dispatcher.workers()) < count:
        if time.monotonic() > deadline:
            raise SystemExit("the workers did not start within 60 s")
        time.sleep(0.1)


def cpu_s(pids: list[int]) -> float:
    """User and system time of some processes, with all their threads."""
    return sum(sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) * TICK_S for pid in pids)


def profiled(call: Callable[[], None]) -> None:
    import cProfile
    import pstats

    threads: list[cProfile.Profile] = []
    kept = threading.Thread.run

    def profiled_run(thread: threading.Thread) -> None:
        profile = cProfile.Profile(time.thread_time)  # waiting is not counted
        threads.append(profile)
        profile.runcall(kept, thread)

    threading.Thread.run = profiled_run
    try:
        call()
    finally:
        threading.Thread.run = kept
    stats = pstats.Stats(threads[0])
    for profile in threads[1:]:
        stats.add(profile)
    stats.sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
