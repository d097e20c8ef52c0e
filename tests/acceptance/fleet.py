"""A fleet at work, as it looks in Redis: what workers, clicks, videos and errors leave there in a day. Nothing runs."""

from __future__ import annotations

import dataclasses
import math
import random
import time

import redis

from backend.events import Event, ahead_event, click_event, error_event, open_event, preannotate_events, stored_event, track_event
from backend.journal_store import JournalStore
from backend.overview import EMBEDDINGS_BYTES
from backend.projects import ProjectStore, judged
from sam2_backend.errors import MediaUnreachableError
from sam2_backend.liveness import announce
from sam2_backend.messages import ImagePrompt, MediaRef, WorkerStatus
from sam2_backend.propagation_format import USED, SessionKeys
from sam2_backend.propagation_store import SessionStore
from sam2_backend.queue_format import private_queue, queue_key
from sam2_backend.settings import GIB, MIB, Settings
from sam2_backend.video_messages import FrameSource, Keyframe, PropagateJob

MODEL = "sam2.1_hiera_small@a6c1f0b2d4e3"
PROJECT, VIDEOS, MISSET = "31.1763600000", "32.1763600001", "33.1763600002"
_CONFIG = """<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image" smart="false"><Label value="Cat"/></BrushLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels></View>"""
_NO_CONTROL = '<View><Image name="image" value="$image"/></View>'


def four_workers(client: redis.Redis) -> None:
    """Two GPUs and two CPU workers, one of them just starting; clicks and other work wait."""
    now = time.time()
    hits = {"device": 9120.0, "host": 640.0, "redis": 810.0, "disk": 95.0, "none": 1480.0}
    gpu = WorkerStatus(
        "gpu0", 11, "node-a", "cuda:0", MODEL, now - 3 * 86400, now, "busy", 18_211, 12, 3 * GIB, 9 * GIB, hits, 21 * GIB, 24 * GIB
    )
    slow = {"device": 3100.0, "redis": 300.0, "none": 900.0}
    statuses = [
        gpu,
        WorkerStatus(
            "gpu1",
            12,
            "node-a",
            "cuda:1",
            MODEL,
            now - 86400,
            now,
            "idle",
            9_874,
            3,
            2 * GIB,
            5 * GIB,
            hits,
            23 * GIB + 400 * MIB,
            24 * GIB,
        ),
        WorkerStatus("cpu0", 13, "node-b", "cpu", MODEL, now - 7200, now, "busy", 2_040, 1, 900 * MIB, 0, slow),
        WorkerStatus("cpu1", 14, "node-b", "cpu", "", now - 9, now, "loading"),
    ]
    with client.pipeline() as pipe:
        for status in statuses:
            announce(pipe, status, 3600)
        for queue, length in ((private_queue("interactive", "cpu0"), 3), (private_queue("warm", "gpu0"), 41), ("preannotate", 212)):
            pipe.rpush(queue_key(queue), *(f"job-{n}" for n in range(length)))
        pipe.set(EMBEDDINGS_BYTES, 3 * GIB)
        pipe.execute()


def three_videos(client: redis.Redis) -> None:
    """One that is tracked, one that waits, one that failed."""
    now = time.time()
    videos = [
        ("a" * 32, {"phase": "running", "title": "project 32 task 907", "n_frames": 3600, "n_done": 1512, "worker": "gpu0"}),
        ("b" * 32, {"phase": "waiting", "title": "project 32 task 911", "n_frames": 0, "n_done": 0}),
        ("c" * 32, {"phase": "failed", "title": "project 32 task 899", "n_frames": 900, "n_done": 130,
                    "error": "video_unreadable: The video is damaged at frame 131. Convert it, or replace it in the task."}),
    ]  # fmt: skip
    source = FrameSource((MediaRef("http://studio.test/data/upload/1.mp4"),), "video", 25.0)
    keyframe = Keyframe("box", 0, ImagePrompt("box", box_xyxy_px=(0.1, 0.1, 0.4, 0.5)))
    for age, (session, facts) in enumerate(videos):
        SessionStore(client, Settings()).start(PropagateJob(session, source, (1, 1), (keyframe,), title=facts["title"]), MODEL)
        client.hset(SessionKeys(session).state, mapping=facts | {"updated_at": now - age * 70, "started_at": now - 600})
        client.zadd(USED, {session: now - age})


def a_days_work(client: redis.Redis, seed: int = 5) -> None:
    """Clicks of twenty people over a day, with a quiet night, a slow half-hour, and the errors that come with it."""
    rng, now, store = random.Random(seed), time.time(), JournalStore(lambda: client)
    ProjectStore(lambda: client).remember(judged(PROJECT, _CONFIG, None))
    ProjectStore(lambda: client).remember(judged(VIDEOS, _CONFIG, None))
    ProjectStore(lambda: client).remember(judged(MISSET, _NO_CONTROL, None))
    events = [_moved(_click(rng, at, now), at) for at in _moments(rng, now)]
    store.write(sorted([*events, *_happenings(now)], key=lambda event: event.at))


def _moments(rng: random.Random, now: float) -> list[float]:
    moments = []
    for minute in range(24 * 60):
        at = now - minute * 60
        is_night = 5 * 60 < minute < 14 * 60
        expected = 0.05 if is_night else 3.0 if minute < 60 else 0.7
        moments += [at - rng.random() * 60 for _ in range(int(expected + rng.random()))]
    return moments


def _click(rng: random.Random, at: float, now: float) -> Event:
    age_min = (now - at) / 60
    is_slow = 20 < age_min < 26
    worker = rng.choices(("gpu0", "gpu1", "cpu0"), (5, 4, 2))[0]
    tier = rng.choices(("device", "host", "redis", "disk", "none"), (80, 6, 8, 2, 4))[0]
    decode_ms = (14 if worker != "cpu0" else 95) * math.exp(rng.gauss(0, 0.25)) * (4 if is_slow else 1)
    embed_ms = {"none": 310.0 if worker != "cpu0" else 2100.0, "redis": 12.0, "disk": 18.0}.get(tier, 0.2)
    queue_ms = rng.expovariate(1 / (80 if is_slow else 3))
    timings = {"queue": queue_ms, "media": 0.4, "embed": embed_ms, "decode": decode_ms, "runs": 1.1, "regions": 2.0}
    timings["total"] = sum(timings.values()) + 4
    task = str(1200 - int(age_min // 4))
    facts = {"task": task, "points": rng.randint(1, 4), "objects": 1, "cache": tier, "score": rng.uniform(0.8, 0.99), "worker": worker}
    if rng.random() < 0.03:
        facts |= {"cache": "superseded", "worker": "-"}
    facts["media"] = [f"image-{task}-{rng.randint(0, 9)}"]
    return click_event(PROJECT, facts, timings, int(rng.random() > 0.02))


def _happenings(now: float) -> list[Event]:
    uris = [f"http://studio.test/data/upload/{n}.png" for n in range(240)]
    unreachable = "images.example.org did not answer within 30 s. Correct the task's address, or let the worker reach that host."
    too_many = "256 jobs wait on interactive@cpu0 already. Try again in 5 s, or start more workers."
    track = {"objects": 2, "phase": "running", "done": 1512, "frames": 3600, "task": "907", "worker": "gpu0"}
    ages_s = [
        (9, open_event(PROJECT, [{"id": 1201}], uris[:1])),
        (42, error_event(PROJECT, "1199", "/predict", "media_unreachable", unreachable, 30_112)),
        (70, ahead_event(PROJECT, uris[:12])),
        (300, track_event(VIDEOS, track, {"total": 20_004.0})),
        (1300, error_event(PROJECT, "1194", "/predict", "overloaded", too_many, 3.1)),
        (1310, error_event(PROJECT, "1193", "/predict", "overloaded", too_many, 2.8)),
        (1345, error_event(PROJECT, "1193", "/predict", "overloaded", too_many, 2.9)),
        (2000, stored_event("push", 902, 3, VIDEOS)),
        (4000, error_event("", "", "/predict", "unauthorized", "The user, password or API key is missing or wrong.", 0.4)),
        (7200, *preannotate_events(PROJECT, [{"id": n} for n in range(40)], 37, 3, [], 3020.0)),
        (9000, open_event(PROJECT, [{"id": n} for n in range(240)], uris, MediaUnreachableError("cdn.example.org refused the connection."))),
    ]  # fmt: skip
    return [_moved(event, now - age_s) for age_s, event in ages_s]


def _moved(event: Event, at: float) -> Event:
    return dataclasses.replace(event, at=at)
