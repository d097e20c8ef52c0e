"""How many frames a second does the tracker follow 1, 3, 10 objects, and does a long video need more memory or time than a short one?

Ours and the peer, transformers' Sam2VideoModel on the same weights, take the same frames in turn, in one process; a frame is encoding
and tracking, without reading the file. Both start with a full memory (a prompted frame and fifteen tracked ones), which is what nearly
every frame of a video sees. CPU seconds are given beside the wall's: on a shared machine they are the steadier ones.

The long run is each in a process of its own: peak memory and time per frame over few and over many frames of a small network.

    python -m benchmarks.video [--model random:sam2.1_hiera_tiny] [--objects 1 3 10] [--rounds 3] [--short 300] [--long 3000]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our worker does: the comparison is of what is done, not of this

import torch

from sam2_backend.checkpoints import load
from sam2_backend.network import Sam2Network
from sam2_backend.process_memory import keep_freed_memory
from sam2_backend.settings import Settings
from sam2_backend.tracker import Tracker, TrackerPrompt

CPU = torch.device("cpu")
LAST_FILLED = 15
TIMED_FRAMES = 100


def frame_of(side_px: int, frame_idx: int) -> torch.Tensor:
    """A disc that goes round on a slope, normalised, (3, S, S)."""
    across = torch.linspace(-1, 1, side_px)
    angle = torch.tensor(frame_idx / 20)
    disc = (across[None] - 0.5 * angle.cos()) ** 2 + (across[:, None] - 0.5 * angle.sin()) ** 2 < 0.04
    ground = (across[None] + across[:, None]).expand(3, -1, -1)
    return torch.where(disc, torch.tensor([2.0, -1.0, 0.5])[:, None, None], ground)


def boxes(side_px: int, n_objects: int) -> list[TrackerPrompt]:
    """A box for each object, along the diagonal."""
    starts = [side_px * 0.6 * i / max(1, n_objects) for i in range(n_objects)]
    return [
        TrackerPrompt(str(i), torch.tensor([[a, a], [a + side_px / 4, a + side_px / 4]]), torch.tensor([2, 3]))
        for i, a in enumerate(starts)
    ]


class Ours:
    def __init__(self, network: Sam2Network, n_objects: int) -> None:
        self.network, self.tracker, self.side_px = network, Tracker(network, CPU), network.config.image_size
        with torch.inference_mode():
            features = network.encode(frame_of(self.side_px, 0)[None])
        self.tracker.prompt(0, features, boxes(self.side_px, n_objects))

    def fill(self) -> None:
        for memory in self.tracker._objects.values():
            tracked = replace(memory.prompted[0], logits=None)
            for frame_idx in range(1, LAST_FILLED + 1):
                memory.add_tracked(frame_idx, tracked, reverse=False)

    def step(self, frame_idx: int) -> None:
        with torch.inference_mode():
            features = self.network.encode(frame_of(self.side_px, frame_idx)[None])
        self.tracker.step(frame_idx, features)


class Peer:
    def __init__(self, network: Sam2Network, n_objects: int) -> None:
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession  # ours, alone, does not pay for it

        from benchmarks.video_peer import twin

        self.model, self.side_px = twin(network), network.config.image_size
        self.session = Sam2VideoInferenceSession(video_height=self.side_px, video_width=self.side_px, dtype=torch.float32)
        prompts = boxes(self.side_px, n_objects)
        for prompt in prompts:
            inputs = {"point_coords": prompt.points_xy[None, None], "point_labels": prompt.labels[None, None].int()}
            self.session.add_point_inputs(self.session.obj_id_to_idx(prompt.object_id), 0, inputs)
        self.session.obj_with_new_inputs = [prompt.object_id for prompt in prompts]
        self.step(0)

    def fill(self) -> None:
        for outputs in self.session.output_dict_per_obj.values():
            first = outputs["cond_frame_outputs"][0]
            outputs["non_cond_frame_outputs"] |= dict.fromkeys(range(1, LAST_FILLED + 1), first)

    def step(self, frame_idx: int) -> None:
        self.model(self.session, frame_idx=frame_idx, frame=frame_of(self.side_px, frame_idx))


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def race(network: Sam2Network, n_objects: int, rounds: int) -> dict:
    both = {"ours": Ours(network, n_objects), "peer": Peer(network, n_objects)}
    taken: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for runner in both.values():
        runner.fill()
    for number in range(rounds):
        order = ("ours", "peer") if number % 2 == 0 else ("peer", "ours")
        for name in order:
            taken[name].append(timed(lambda name=name, number=number: both[name].step(LAST_FILLED + 1 + number)))
    report: dict = {"n": rounds}
    for name, times in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        report[name] = {"frames_per_s": round(1 / wall, 3), "s_per_frame": round(wall, 3), "cpu_s_per_frame": round(cpu, 3)}
    # Each ours against the peer's next to it: what else the machine does at the time is the same for both.
    report["ratio_wall"] = round(statistics.median(p[0] / o[0] for o, p in zip(taken["ours"], taken["peer"], strict=True)), 2)
    report["ratio_cpu"] = round(statistics.median(p[1] / o[1] for o, p in zip(taken["ours"], taken["peer"], strict=True)), 2)
    return report


def long_run(network: Sam2Network, who: str, n_frames: int) -> dict:
    """Track two objects over so many frames; meant for a process of its own."""
    runner = (Ours if who == "ours" else Peer)(network, 2)
    times, resident_mb = [], []
    for frame_idx in range(1, n_frames + 1):
        times.append(timed(lambda frame_idx=frame_idx: runner.step(frame_idx))[1])
        resident_mb.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)
    settled, settled_mb = times[LAST_FILLED:], resident_mb[LAST_FILLED:]
    return {
        "frames": n_frames,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "first_rss_mb": round(statistics.median(settled_mb[:TIMED_FRAMES]), 1),
        "last_rss_mb": round(statistics.median(settled_mb[-TIMED_FRAMES:]), 1),
        "first_cpu_ms": round(statistics.median(settled[:TIMED_FRAMES]) * 1e3, 1),
        "last_cpu_ms": round(statistics.median(settled[-TIMED_FRAMES:]) * 1e3, 1),
    }


def long_run_alone(options: argparse.Namespace, who: str, n_frames: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.video", "--long-model", options.long_model, "--alone", who, str(n_frames)]
    done = subprocess.run([*command, "--threads", str(options.threads)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(options: argparse.Namespace) -> dict:
    report: dict = {"benchmark": "video", "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}"}
    if options.objects:
        network = load(Settings(model=options.model)).network()
        report["model"], report["objects"] = options.model, {}
        for n_objects in options.objects:
            report["objects"][n_objects] = race(network, n_objects, options.rounds)
            print(n_objects, json.dumps(report["objects"][n_objects]), file=sys.stderr, flush=True)
    if options.long:
        report["long_model"] = options.long_model
        ours = [long_run_alone(options, "ours", n) for n in (options.short, options.long)]
        report["ours_long"], report["rss_long_to_short"] = ours, round(ours[1]["peak_rss_mb"] / ours[0]["peak_rss_mb"], 4)
        report["peer_long"] = [long_run_alone(options, "peer", n) for n in (options.short // 2, options.short)]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:sam2.1_hiera_tiny")
    parser.add_argument("--objects", type=int, nargs="*", default=[1, 3, 10])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long-model", default="demo")
    parser.add_argument("--short", type=int, default=300)
    parser.add_argument("--long", type=int, default=3000, help="0: no long run")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--alone", nargs=2, metavar=("WHO", "FRAMES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        keep_freed_memory()  # as a worker does; of both
        print(json.dumps(long_run(load(Settings(model=options.long_model)).network(), options.alone[0], int(options.alone[1]))))
    else:
        print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
