"""Tasks whose prediction was not ready when Label Studio asked: what is owed, in Redis, until some web process has pushed it.

Owner of `sam2:preannotations` (what is owed, by when it is due), `sam2:preannotation-tries` and `sam2:preannotation-config:<digest>`. A
process that takes a task has it for `LEASE_S` and keeps it as long as it renews that; if it dies, another takes it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from redis import Redis

from backend.promises import Promises
from backend.prompt_regions import digest
from sam2_backend.redis_connection import redis_errors_as_ours

OWED, TRIES, CONFIG = "sam2:preannotations", "sam2:preannotation-tries", "sam2:preannotation-config:"
MOST_OWED = 100_000
MOST_TRIES = 5
KEPT_S = 24 * 3600
LEASE_S = 60
LONGEST_PAUSE_S = 600.0

#: Due members, each postponed by the lease in the same step.
_TAKE = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], 0, ARGV[1], 'LIMIT', 0, ARGV[2])
for _, member in ipairs(due) do redis.call('ZADD', KEYS[1], 'XX', ARGV[1] + ARGV[3], member) end
return due
"""


@dataclass(frozen=True, slots=True)
class Owed:
    """One task.

    Attributes:
        project: Label Studio's `<id>.<unix time>`.
        config: Names the labeling config as it was.
        model_version: Of the workers when it was asked: what stands in for the prediction names it.
    """

    task_id: int
    project: str
    config: str
    model_version: str

    @property
    def member(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def project_id(self) -> int:
        return int(self.project.split(".", 1)[0])


class OwedTasks:
    """What is owed to Label Studio, for all web processes."""

    def __init__(self, redis: Callable[[], Redis]) -> None:
        self._redis = redis
        self._promises: Promises[str] = Promises(redis, self._are_known, MOST_OWED)
        """Of this process: a task as it stands in the list, and its labeling config."""

    def owe(self, task_ids: Sequence[int], project: str, label_config: str, model_version: str, due_s: float) -> int:
        """Note tasks; one that is noted stays noted once. Returns how many are not, for want of room.

        Args:
            due_s: From now; before that Label Studio may not have stored what stands in for the prediction.

        Raises:
            QueueDownError: Redis does not answer.
        """
        config = digest(label_config)
        members = [Owed(task_id, project, config, model_version).member for task_id in task_ids]
        for member in members:
            self._promises.make(member, label_config)
        with redis_errors_as_ours():
            room = max(0, MOST_OWED - int(self._redis().zcard(OWED)))
            for member in members[room:]:
                self._promises.settled(member)
            self._write(members[:room], label_config, due_s)
        return len(members[room:])

    def renew(self) -> None:
        """Note again what Redis has lost, or did not take; to be called every second or so.

        Raises:
            QueueDownError: Redis does not answer.
        """
        with redis_errors_as_ours():
            by_config: dict[str, list[str]] = {}
            for member, label_config in self._promises.missing().items():
                by_config.setdefault(label_config, []).append(member)
            for label_config, members in by_config.items():
                self._write(members, label_config, 0.0)

    def take(self, count: int) -> list[Owed]:
        """Tasks that are due; they are this process's for a while.

        Raises:
            QueueDownError: Redis does not answer.
        """
        with redis_errors_as_ours():
            due: Any = self._redis().eval(_TAKE, 1, OWED, str(time.time()), str(count), str(LEASE_S))
        return [Owed(**json.loads(member)) for member in due]

    def keep(self, several: Sequence[Owed]) -> None:
        """They stay this process's for another while."""
        if several:
            with redis_errors_as_ours():
                self._redis().zadd(OWED, {owed.member: time.time() + LEASE_S for owed in several}, xx=True)

    def label_config(self, owed: Owed) -> str:
        """The labeling config that it was asked with; empty: too long ago."""
        with redis_errors_as_ours():
            text: Any = self._redis().get(CONFIG + owed.config)
        return text.decode() if isinstance(text, bytes) else text or ""

    def settle(self, owed: Owed) -> None:
        """It is owed no more."""
        self._promises.settled(owed.member)
        with redis_errors_as_ours():
            client = self._redis()
            client.zrem(OWED, owed.member)
            client.hdel(TRIES, owed.member)

    def give_back(self, owed: Owed) -> None:
        """Another process may take it at once."""
        with redis_errors_as_ours():
            self._redis().zadd(OWED, {owed.member: time.time()}, xx=True)

    def failed(self, owed: Owed) -> bool:
        """It is tried again after a pause; False: it was tried often enough, and is owed no more."""
        with redis_errors_as_ours():
            client = self._redis()
            tries: Any = client.hincrby(TRIES, owed.member, 1)
            client.expire(TRIES, KEPT_S)
            if tries < MOST_TRIES:
                client.zadd(OWED, {owed.member: time.time() + min(5.0 * 4.0**tries, LONGEST_PAUSE_S)}, xx=True)
                return True
        self.settle(owed)
        return False

    def _write(self, members: Sequence[str], label_config: str, due_s: float) -> None:
        if members:
            with self._redis().pipeline() as pipe:
                pipe.set(CONFIG + digest(label_config), label_config, ex=KEPT_S)
                pipe.zadd(OWED, dict.fromkeys(members, time.time() + due_s), nx=True)
                pipe.expire(OWED, KEPT_S)
                pipe.execute()
            self._promises.written(members)

    def _are_known(self, members: Sequence[str]) -> list[bool]:
        return [due is not None for due in self._redis().zmscore(OWED, list(members))]

    def count(self) -> int:
        """How many tasks are owed."""
        with redis_errors_as_ours():
            return int(self._redis().zcard(OWED))
