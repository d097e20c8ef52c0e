"""Propagation sessions in Redis: who waits, who works on what, and what is found so far. Used by both tiers; no tensor.

A session is held by one worker at a time, which proves it by the token under `owner`. Whatever a worker writes it writes in one transaction
that Redis refuses once the token is another: a worker that was stopped, and that another took over from, cannot write any more. Taking the
token away is also how a session is cancelled; a worker looks at it between frames. A session is worked on by name, never by a record of the
queue, so a worker that dies leaves nothing half done: whoever notices puts the session back in front of those that wait.

Errors are redis-py's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import redis

from sam2_backend.messages import from_wire, to_wire
from sam2_backend.propagation_format import (
    ROW,
    RUNNING,
    USED,
    WAITING,
    PackedMask,
    Rows,
    SessionKeys,
    object_ids,
    tracks_of,
    unpack_masks,
    unpack_rows,
)
from sam2_backend.redis_connection import as_bytes
from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagateJob, PropagationState

#: Workers that may die over a session without getting any further before it is given up.
MOST_DEATHS = 3

# Phases that a call of `start` answers with what is there. KEYS: state, job, rows, waiting, used, masks, bank, owner.
# ARGV: session, job, now, title, row size, model version, idle_s.
_START = """
local phase = redis.call('HGET', KEYS[1], 'phase')
local n_done = tonumber(redis.call('HGET', KEYS[1], 'n_done') or '0')
if not phase or redis.call('EXISTS', KEYS[2]) == 0 or redis.call('STRLEN', KEYS[3]) ~= n_done * tonumber(ARGV[5]) then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[6], KEYS[7], KEYS[8])
  redis.call('LREM', KEYS[4], 0, ARGV[1])
  redis.call('HSET', KEYS[1], 'n_done', 0, 'n_frames', 0, 'started_at', ARGV[3])
  phase = false
end
if not phase or phase == 'failed' or phase == 'cancelled' then
  redis.call('SET', KEYS[2], ARGV[2])
  redis.call('HSET', KEYS[1], 'phase', 'waiting', 'title', ARGV[4], 'model_version', ARGV[6],
    'error', '', 'worker', '', 'deaths', 0, 'updated_at', ARGV[3])
  redis.call('RPUSH', KEYS[4], ARGV[1])
end
redis.call('ZADD', KEYS[5], ARGV[3], ARGV[1])
for _, key in ipairs({KEYS[1], KEYS[2], KEYS[3], KEYS[6], KEYS[7], KEYS[8]}) do redis.call('EXPIRE', key, ARGV[7]) end
"""

# KEYS: state, owner, waiting, running. ARGV: session, now.
_CANCEL = """
local phase = redis.call('HGET', KEYS[1], 'phase')
if phase == 'waiting' or phase == 'running' then
  redis.call('HSET', KEYS[1], 'phase', 'cancelled', 'worker', '', 'updated_at', ARGV[2])
  redis.call('DEL', KEYS[2]); redis.call('LREM', KEYS[3], 0, ARGV[1]); redis.call('SREM', KEYS[4], ARGV[1])
end
"""

# Its holder is dead, or no longer knows of it. KEYS: state, owner, waiting, running.
# ARGV: session, the holder's token or '', most deaths, error, deaths to count.
_REQUEUE = """
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[2]); redis.call('SREM', KEYS[4], ARGV[1])
if redis.call('HGET', KEYS[1], 'phase') ~= 'running' then return 0 end
if redis.call('HINCRBY', KEYS[1], 'deaths', ARGV[5]) >= tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], 'phase', 'failed', 'worker', '', 'error', ARGV[4])
  return 0
end
redis.call('HSET', KEYS[1], 'phase', 'waiting', 'worker', '')
redis.call('LPUSH', KEYS[3], ARGV[1])
return 1
"""

_DIED = f"internal_error: {MOST_DEATHS} workers died over this video. Their logs tell more; it may need more memory than there is."


class SessionStore:
    """The sessions of one Redis. Safe to share between threads."""

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._redis, self._settings = connection, settings
        self._start, self._cancel, self._requeue = (connection.register_script(text) for text in (_START, _CANCEL, _REQUEUE))

    def start(self, job: PropagateJob, model_version: str) -> None:
        """Have a session worked on, unless it is already, or done. One that failed or was cancelled goes on where it stopped."""
        keys, now = SessionKeys(job.session), time.time()
        self._start(
            keys=[keys.state, keys.job, keys.rows, WAITING, USED, keys.masks, keys.bank, keys.owner],
            args=[job.session, json.dumps(to_wire(job)), now, job.title, ROW.itemsize, model_version, self._settings.propagate_idle_s],
        )
        self.keep_within_bounds(job.session)

    def phase(self, session: str) -> str | None:
        """Cheap: one short command."""
        phase = self._redis.hget(SessionKeys(session).state, "phase")
        return None if phase is None else as_bytes(phase).decode()

    def read(self, session: str) -> PropagationState | None:
        """A session with everything found so far."""
        keys = SessionKeys(session)
        with self._redis.pipeline() as pipe:  # a transaction: facts and rows belong together
            pipe.hgetall(keys.state)
            pipe.get(keys.job)
            pipe.get(keys.rows)
            facts, job, rows = pipe.execute()
        if not facts or job is None:
            return None
        ids = object_ids(from_wire(PropagateJob, json.loads(job)).keyframes)
        return _state(session, facts, tracks=tracks_of(unpack_rows(rows or b""), ids))

    def recent(self) -> list[PropagationState]:
        """All sessions, those used last first, without their tracks."""
        sessions = [session for session, _ in self._by_use()]
        with self._redis.pipeline(transaction=False) as pipe:
            for session in sessions:
                pipe.hgetall(SessionKeys(session).state)
            return [_state(session, facts) for session, facts in zip(sessions, pipe.execute(), strict=True) if facts.get(b"phase")]

    def masks(self, session: str) -> Iterator[PackedMask]:
        """The masks found so far, a chunk in memory at a time."""
        key, index = SessionKeys(session).masks, 0
        while (chunk := self._redis.hget(key, str(index))) is not None:
            yield from unpack_masks(as_bytes(chunk))
            index += 1

    def touch(self, session: str) -> None:
        """The session is in use: its end of life begins anew."""
        with self._redis.pipeline() as pipe:
            renew(pipe, session, self._settings.propagate_idle_s)
            pipe.execute()

    def cancel(self, session: str) -> None:
        """Stop work on a session; what was found stays."""
        keys = SessionKeys(session)
        self._cancel(keys=[keys.state, keys.owner, WAITING, RUNNING], args=[session, time.time()])

    def forget(self, session: str) -> None:
        """Remove a session and all that it holds; a worker that holds it notices."""
        with self._redis.pipeline() as pipe:
            pipe.delete(*SessionKeys(session).all)
            pipe.lrem(WAITING, 0, session)
            pipe.srem(RUNNING, session)
            pipe.zrem(USED, session)
            pipe.execute()

    def requeue_lost(self, live_incarnations: Callable[[], Collection[str]], free_handed: str = "") -> int:
        """Put sessions whose worker is dead back in front of those that wait, each once however many notice.

        Args:
            live_incarnations: Reads who lives, see `liveness.incarnation`; asked only where somebody holds a session.
            free_handed: The incarnation that asks, with nothing in hand: what it is said to hold was lost on the way, not by a death.

        Returns:
            How many.
        """
        held = self._held()
        live = live_incarnations() if held else ()  # read after the holders: who took one up since then is not taken for dead
        count = 0
        for session, token in held:
            holder = token.rpartition("/")[0]
            if holder not in live or holder == free_handed:
                keys = SessionKeys(session)
                arguments: list[str | int] = [session, token, MOST_DEATHS, _DIED, int(not free_handed or holder != free_handed)]
                count += int(self._requeue(keys=[keys.state, keys.owner, WAITING, RUNNING], args=arguments))
        return count

    def is_any_open(self) -> bool:
        """Whether any waits or is held by a worker."""
        return bool(self._redis.exists(WAITING, RUNNING))

    def is_any_waiting(self) -> bool:
        return bool(self._redis.exists(WAITING))

    def rows(self, session: str) -> Rows:
        """Everything found so far, in the order in which it was found."""
        return unpack_rows(as_bytes(self._redis.get(SessionKeys(session).rows) or b""))

    def keep_within_bounds(self, spared: str) -> None:
        """Forget the sessions unused for longest until those that are left are few and small enough; never the one in use."""
        used = self._by_use()
        with self._redis.pipeline(transaction=False) as pipe:
            for session, _ in used:
                keys = SessionKeys(session)
                pipe.hmget(keys.state, "mask_bytes", "bank_bytes")
                pipe.strlen(keys.rows)
                pipe.strlen(keys.job)
            facts = pipe.execute()
        sizes = [
            sum(int(size or 0) for size in pair) + rows + job for pair, rows, job in zip(*(facts[i::3] for i in range(3)), strict=True)
        ]
        oldest, total, count = time.time() - self._settings.propagate_idle_s, 0, 0
        for (session, at), size in sorted(zip(used, sizes, strict=True), key=lambda item: item[0][0] != spared):
            total, count = total + size, count + 1
            is_too_much = count > self._settings.propagate_sessions or total > self._settings.propagate_bytes
            if session != spared and (is_too_much or at < oldest):
                self.forget(session)
                total, count = total - size, count - 1

    def _held(self) -> list[tuple[str, str]]:
        sessions = [as_bytes(name).decode() for name in self._redis.smembers(RUNNING)]
        if not sessions:
            return []
        tokens = self._redis.mget([SessionKeys(session).owner for session in sessions])
        return [(session, as_bytes(token or b"").decode()) for session, token in zip(sessions, tokens, strict=True)]

    def _by_use(self) -> list[tuple[str, float]]:
        """(session, when it was last used in Unix seconds), the latest first."""
        pairs: Any = self._redis.zrevrange(USED, 0, -1, withscores=True)
        return [(as_bytes(name).decode(), float(at)) for name, at in pairs]


def _state(session: str, facts: Mapping[bytes, bytes], tracks: Sequence[Any] = ()) -> PropagationState:
    said = decoded(facts)
    return PropagationState(
        session=session,
        phase=said["phase"],  # type: ignore[arg-type]
        title=said.get("title", ""),
        n_frames=int(said.get("n_frames", 0)),
        n_done=int(said.get("n_done", 0)),
        size_hw=(int(said.get("height", 0)), int(said.get("width", 0))),
        tracks=tuple(tracks),
        model_version=said.get("model_version", ""),
        worker=said.get("worker", ""),
        error=said.get("error", ""),
        started_at=float(said.get("started_at", 0)),
        updated_at=float(said.get("updated_at", 0)),
    )


def decoded(facts: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in facts.items()}


def renew(pipe: Any, session: str, idle_s: int) -> None:
    """Let the end of life of a session begin anew."""
    for key in SessionKeys(session).all:
        pipe.expire(key, idle_s)
    pipe.zadd(USED, {session: time.time()}, xx=True)
