"""A worker's hold on a session: take the next, write down what is found, let go. Every write is one transaction that only the holder can make.

Errors are redis-py's, and SessionLostError.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from sam2_backend.messages import from_wire
from sam2_backend.propagation_format import RESULTS, RESULTS_KEPT_S, ROW, RUNNING, WAITING, SessionKeys, run_key
from sam2_backend.propagation_store import SessionStore, decoded, renew
from sam2_backend.redis_connection import as_bytes
from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagateJob

# Hand a worker the first that waits and is not left to others.
# KEYS: waiting, running. ARGV: prefix of the keys, token, worker, idle_s, model versions that are left to others.
_TAKE = """
for _, session in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local state = ARGV[1] .. session .. ':state'
  local facts = redis.call('HMGET', state, 'phase', 'model_version')
  local is_others = false
  for i = 5, #ARGV do is_others = is_others or facts[2] == ARGV[i] end
  if facts[1] ~= 'waiting' then
    redis.call('LREM', KEYS[1], 0, session)
  elseif not is_others then
    redis.call('LREM', KEYS[1], 0, session)
    redis.call('HSET', state, 'phase', 'running', 'worker', ARGV[3])
    redis.call('SET', ARGV[1] .. session .. ':owner', ARGV[2], 'EX', ARGV[4])
    redis.call('SADD', KEYS[2], session)
    return session
  end
end
return false
"""


class SessionLostError(Exception):
    """The worker no longer holds the session: it was cancelled, forgotten, or another worker took it over."""


@dataclass(frozen=True, slots=True)
class Claim:
    """That a worker holds a session."""

    session: str
    token: str

    @property
    def keys(self) -> SessionKeys:
        return SessionKeys(self.session)


@dataclass(slots=True)
class Progress:
    """What a worker found since it last saved, behind what is saved already. Saving the same twice is saving it once.

    Attributes:
        saved_rows, saved_chunks, saved_mask_bytes: What is saved already.
        rows: Packed ROWs, one after the other.
        chunks: Packed masks.
        bank: What is needed to go on from here; None: as before.
        facts: Fields of the state that changed.
        run_notes: What to say of runs of which this session now holds results, by digest.
    """

    saved_rows: int = 0
    saved_chunks: int = 0
    saved_mask_bytes: int = 0
    rows: bytes = b""
    chunks: tuple[bytes, ...] = ()
    bank: bytes | None = None
    facts: dict[str, str | int | float] = field(default_factory=dict)
    run_notes: dict[str, str] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return self.saved_rows + len(self.rows) // ROW.itemsize

    @property
    def mask_bytes(self) -> int:
        return self.saved_mask_bytes + sum(map(len, self.chunks))

    def saved(self) -> Progress:
        """What to go on with once this is saved."""
        return Progress(self.n_rows, self.saved_chunks + len(self.chunks), self.mask_bytes)


class Claims:
    """The sessions of one Redis, as workers see them."""

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._redis, self._settings = connection, settings
        self._take = connection.register_script(_TAKE)
        self.store = SessionStore(connection, settings)

    def take(self, worker: str, incarnation: str, others_models: Collection[str] = ()) -> Claim | None:
        """The first session that waits is now this worker's; None: none waits for it.

        Args:
            worker: Its name.
            incarnation: Names its process, see `liveness.incarnation`.
            others_models: Model versions that other workers serve and this one does not: their sessions are left to them.
        """
        token = f"{incarnation}/{secrets.token_hex(8)}"
        prefix = SessionKeys("").job.removesuffix(":job")
        session = self._take(keys=[WAITING, RUNNING], args=[prefix, token, worker, self._settings.propagate_idle_s, *others_models])
        return Claim(as_bytes(session).decode(), token) if session else None

    def load(self, claim: Claim) -> tuple[PropagateJob, bytes, Mapping[str, str]]:
        """(the job, the bank as last saved or nothing, the facts of the state).

        Raises:
            SessionLostError: it is gone.
            JobRefusedError: another version wrote the job.
        """
        keys = claim.keys
        with self._redis.pipeline() as pipe:
            pipe.get(keys.job)
            pipe.get(keys.bank)
            pipe.hgetall(keys.state)
            job, bank, facts = pipe.execute()
        if job is None:
            raise SessionLostError
        return from_wire(PropagateJob, json.loads(job)), bank or b"", decoded(facts)

    def check(self, claim: Claim) -> None:
        """See that the session is still this worker's: one short command.

        Raises:
            SessionLostError: it is not.
        """
        if self._redis.get(claim.keys.owner) != claim.token.encode():
            raise SessionLostError

    def save(self, claim: Claim, progress: Progress) -> None:
        """Write down what was found, all of it or nothing.

        Raises:
            SessionLostError: the session is no longer this worker's; nothing was written.
        """
        self._write(claim, lambda pipe: self._add(pipe, claim, progress))
        self.store.keep_within_bounds(claim.session)

    def restart(self, claim: Claim) -> None:
        """Forget what was found: it belongs to another model or another file.

        Raises:
            SessionLostError: as for `save`.
        """

        def clear(pipe: Any) -> None:
            pipe.delete(claim.keys.rows, claim.keys.masks, claim.keys.bank)
            pipe.hset(claim.keys.state, mapping={"n_done": 0, "n_chunks": 0, "mask_bytes": 0, "bank_bytes": 0})

        self._write(claim, clear)

    def drop_bank(self, claim: Claim) -> None:
        """Make room. What was found stays; asked for again, the session begins anew.

        Raises:
            SessionLostError: as for `save`.
        """
        self._write(claim, lambda pipe: pipe.delete(claim.keys.bank))

    def finish(self, claim: Claim, progress: Progress, error: str = "") -> None:
        """Let go of a session that is done or, with an error (`code: message`), has failed.

        Raises:
            SessionLostError: as for `save`.
        """

        def end(pipe: Any) -> None:
            self._add(pipe, claim, progress)
            pipe.hset(claim.keys.state, mapping={"phase": "failed" if error else "done", "error": error})
            pipe.delete(claim.keys.owner, *([] if error else [claim.keys.bank]))
            pipe.srem(RUNNING, claim.session)

        self._write(claim, end)
        self.store.keep_within_bounds(claim.session)

    def hand_back(self, claim: Claim, progress: Progress, *, is_next: bool) -> None:
        """Let others go on with a session.

        Args:
            is_next: Before all others that wait; else after them.

        Raises:
            SessionLostError: as for `save`.
        """

        def leave(pipe: Any) -> None:
            self._add(pipe, claim, progress)
            pipe.hset(claim.keys.state, mapping={"phase": "waiting", "worker": ""})
            pipe.delete(claim.keys.owner)
            pipe.srem(RUNNING, claim.session)
            (pipe.lpush if is_next else pipe.rpush)(WAITING, claim.session)

        self._write(claim, leave)

    def run_note(self, run_digest: str) -> str | None:
        """What the last session that holds results of this run said of it, see `Progress.run_notes`."""
        note = self._redis.get(run_key(run_digest))
        return None if note is None else as_bytes(note).decode()

    def _write(self, claim: Claim, commands: Callable[[Any], None]) -> None:
        pipe: Any
        with self._redis.pipeline() as pipe:
            pipe.watch(claim.keys.owner)
            if pipe.get(claim.keys.owner) != claim.token.encode():
                raise SessionLostError
            pipe.multi()
            commands(pipe)
            try:
                pipe.execute()
            except redis.WatchError:
                raise SessionLostError from None

    def _add(self, pipe: Any, claim: Claim, progress: Progress) -> None:
        keys, after = claim.keys, progress.saved()
        if progress.rows:
            pipe.setrange(keys.rows, progress.saved_rows * ROW.itemsize, progress.rows)
            pipe.incrby(RESULTS, len(progress.rows) // ROW.itemsize)
            pipe.expire(RESULTS, RESULTS_KEPT_S)
        for number, chunk in enumerate(progress.chunks, start=progress.saved_chunks):
            pipe.hset(keys.masks, str(number), chunk)
        facts: dict[str, str | int | float] = {
            "n_done": after.saved_rows,
            "n_chunks": after.saved_chunks,
            "mask_bytes": after.saved_mask_bytes,
        }
        if progress.rows:
            facts["deaths"] = 0
        if progress.bank is not None:
            pipe.set(keys.bank, progress.bank)
            facts["bank_bytes"] = len(progress.bank)
        pipe.hset(keys.state, mapping={**facts, "updated_at": time.time(), **progress.facts})
        for run_digest, note in progress.run_notes.items():
            pipe.set(run_key(run_digest), note, ex=self._settings.propagate_idle_s)
        renew(pipe, claim.session, self._settings.propagate_idle_s)
