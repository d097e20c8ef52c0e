"""The journal in Redis, shared by every web process: the last events of the fleet, of each project and task, and counters.

Owner of `sam2:seen:*`. Every list and index has a bound and every key an end; lists forget what is older than `KEEP_S` with their last use.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from redis import Redis

from backend.events import Event
from backend.tallies import ERROR, FIRST, MADE, OUTCOME, STAGE, TIER, Tally, counts_of
from sam2_backend.redis_connection import redis_errors_as_ours

PREFIX = "sam2:seen:"
RECENT, ERRORS, TASK, TASKS = f"{PREFIX}recent", f"{PREFIX}errors", f"{PREFIX}task:", f"{PREFIX}tasks"
PROJECT, PROJECTS, DAY, EMBEDDED = f"{PREFIX}project:", f"{PREFIX}projects", f"{PREFIX}day:", f"{PREFIX}embedded:"
CLICKED, MINUTE, QUARTER, TOTALS = f"{PREFIX}clicked", f"{PREFIX}minute:", f"{PREFIX}quarter:", f"{PREFIX}totals"

KEEP_S = 7 * 24 * 3600
MOST_RECENT, MOST_ERRORS, MOST_OF_TASK, MOST_OF_PROJECT = 100, 200, 20, 50
MOST_TASKS, MOST_PROJECTS, MOST_CLICKED = 5000, 200, 20_000
DAYS = 14
DAY_S, QUARTER_S, MINUTE_S = 24 * 3600, 900, 60
N_MINUTES, N_QUARTERS = 60, 96
"""An hour in minutes and a day in quarters of an hour are kept."""

_OF_PROJECT = frozenset({FIRST, MADE, OUTCOME, TIER, ERROR})
_OF_ALL_TIME = frozenset({FIRST, MADE, OUTCOME})


class JournalStore:
    """Reads and writes; one round trip or two each."""

    def __init__(self, redis: Callable[[], Redis]) -> None:
        self._redis = redis

    def write(self, events: Sequence[Event]) -> None:
        """Keep events, all or none, oldest first.

        Raises:
            QueueDownError: Redis does not answer, or is full.
        """
        with redis_errors_as_ours():
            client = self._redis()
            firsts = self._first_clicks(client, events)
            with client.pipeline(transaction=True) as pipe:
                self._add_to_lists(pipe, events)
                self._count(pipe, events, firsts)
                pipe.zrange(TASKS, 0, -MOST_TASKS - 1)
                pipe.zrange(PROJECTS, 0, -MOST_PROJECTS - 1)
                *_, tasks, projects = pipe.execute()
            self._forget(client, [_text(name) for name in tasks], [_text(name) for name in projects])

    def recent(self) -> list[Event]:
        """The last events of the fleet, newest first.

        Raises:
            QueueDownError: Redis does not answer; likewise below.
        """
        return self._list(RECENT)

    def errors(self) -> list[Event]:
        """The last that failed, newest first."""
        return self._list(ERRORS)

    def of_task(self, task: str) -> list[Event]:
        """The last of one task, newest first; of all projects, for tasks of two Label Studios may have one id."""
        return self._list(TASK + task)

    def of_project(self, project: str) -> list[Event]:
        """The last of one project, newest first."""
        return self._list(PROJECT + project)

    def projects(self) -> list[str]:
        """Names of the projects that anything happened in, the last first."""
        with redis_errors_as_ours():
            names: Any = self._redis().zrevrange(PROJECTS, 0, -1)
        return [_text(name) for name in names]

    def minutes(self, now: float) -> list[Tally]:
        """The last hour, a tally a minute, oldest first; the running minute is the last."""
        return self._tallies(_keys(MINUTE, now, MINUTE_S, N_MINUTES))

    def quarters(self, now: float) -> list[Tally]:
        """The last day, a tally a quarter of an hour, oldest first."""
        return self._tallies(_keys(QUARTER, now, QUARTER_S, N_QUARTERS))

    def days(self, project: str, now: float) -> list[Tally]:
        """A project's last days (UTC), oldest first; today is the last."""
        return self._tallies(_keys(f"{DAY}{project}:", now, DAY_S, DAYS))

    def totals(self) -> Tally:
        """Events of every process since anything happened at all."""
        return self._tallies([TOTALS])[0]

    def n_embedded(self, project: str) -> int:
        """About how many images of a project are embedded, or on their way, ahead of a click or by one."""
        with redis_errors_as_ours():
            return int(self._redis().pfcount(EMBEDDED + project))

    def _list(self, key: str) -> list[Event]:
        with redis_errors_as_ours():
            texts: Any = self._redis().lrange(key, 0, -1)
        return [event for event in map(_event, texts) if event]

    def _tallies(self, keys: Iterable[str]) -> list[Tally]:
        with redis_errors_as_ours(), self._redis().pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            hashes: list[Any] = pipe.execute()
        return [Tally.read([{_text(name): int(count) for name, count in counters.items()}]) for counters in hashes]

    def _first_clicks(self, client: Redis, events: Sequence[Event]) -> list[frozenset[str]]:
        """For each event, those of its images that nobody has clicked on before."""
        members = list(dict.fromkeys(image for event in events for image, _ in event.images))
        if not members:
            return [frozenset()] * len(events)
        scores: Any = client.zmscore(CLICKED, members)
        unseen = {member for member, score in zip(members, scores, strict=True) if score is None}
        firsts = []
        for event in events:
            of_event = frozenset(image for image, _ in event.images) & unseen
            unseen -= of_event
            firsts.append(of_event)
        return firsts

    def _add_to_lists(self, pipe: Any, events: Sequence[Event]) -> None:
        lists: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        for event in events:
            text = event.to_json()
            if not event.is_quiet:
                lists[RECENT, MOST_RECENT].append(text)
            if event.is_error and not event.is_quiet:
                lists[ERRORS, MOST_ERRORS].append(text)
            if event.task:
                lists[TASK + event.task, MOST_OF_TASK].append(text)
                pipe.zadd(TASKS, {event.task: event.at})
            if event.project:
                if not event.is_quiet:
                    lists[PROJECT + event.project, MOST_OF_PROJECT].append(text)
                pipe.zadd(PROJECTS, {event.project: event.at})
        for (key, most), texts in lists.items():
            pipe.lpush(key, *texts)
            pipe.ltrim(key, 0, most - 1)
            pipe.expire(key, KEEP_S)
        for index in (TASKS, PROJECTS):
            pipe.expire(index, DAYS * DAY_S)

    def _count(self, pipe: Any, events: Sequence[Event], firsts: Sequence[frozenset[str]]) -> None:
        sums: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        for event, first_images in zip(events, firsts, strict=True):
            counts = counts_of(event, first_images)
            sums[f"{MINUTE}{int(event.at // MINUTE_S)}", (N_MINUTES + 1) * MINUTE_S] += counts
            sums[f"{QUARTER}{int(event.at // QUARTER_S)}", (N_QUARTERS + 1) * QUARTER_S] += counts
            sums[TOTALS, DAYS * DAY_S] += _only(counts, _OF_ALL_TIME)
            if event.project:
                sums[f"{DAY}{event.project}:{int(event.at // DAY_S)}", (DAYS + 1) * DAY_S] += _of_project(counts)
                self._note_images(pipe, event)
            if event.images:
                pipe.zadd(CLICKED, {image: event.at for image, _ in event.images})
        for (key, ttl_s), counts in sums.items():
            for name, count in counts.items():
                pipe.hincrby(key, name, count)
            pipe.expire(key, ttl_s)
        pipe.zremrangebyrank(CLICKED, 0, -MOST_CLICKED - 1)
        pipe.expire(CLICKED, KEEP_S)

    def _note_images(self, pipe: Any, event: Event) -> None:
        images = [*event.prepared, *(image for image, _ in event.images)]
        if images:
            pipe.pfadd(EMBEDDED + event.project, *images)
            pipe.expire(EMBEDDED + event.project, DAYS * DAY_S)

    def _forget(self, client: Redis, tasks: Sequence[str], projects: Sequence[str]) -> None:
        """Delete the surplus, which was used for the last time longest ago."""
        keys = [TASK + name for name in tasks]
        for name in projects:
            today = int(time.time() // DAY_S)
            keys += [PROJECT + name, EMBEDDED + name, *(f"{DAY}{name}:{today - age}" for age in range(DAYS + 1))]
        if keys:
            with client.pipeline(transaction=False) as pipe:
                pipe.delete(*keys)
                for index, names in ((TASKS, tasks), (PROJECTS, projects)):
                    if names:
                        pipe.zrem(index, *names)
                pipe.execute()


def _keys(prefix: str, now: float, step_s: int, count: int) -> list[str]:
    last = int(now // step_s)
    return [f"{prefix}{last - age}" for age in reversed(range(count))]


def _only(counts: Mapping[str, int], kinds: frozenset[str]) -> Counter[str]:
    return Counter({name: count for name, count in counts.items() if name.split("|", 1)[0] in kinds})


def _of_project(counts: Mapping[str, int]) -> Counter[str]:
    """Of the times, only those of whole clicks."""
    whole = {name: count for name, count in counts.items() if name.startswith(f"{STAGE}|total|")}
    return _only(counts, _OF_PROJECT) + Counter(whole)


def _event(text: str | bytes) -> Event | None:
    try:
        return Event.from_json(text)
    except (ValueError, TypeError):  # another version wrote it
        return None


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
