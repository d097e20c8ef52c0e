"""The life of a click inside a worker: media → embedding → decode → masks, each step timed.

A warm click costs a look-up in the media index and in the cache, then the decoder: nothing is fetched, decoded or hashed again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch

from sam2_backend import masks, refinement
from sam2_backend.clock import Clock
from sam2_backend.dataset_messages import DatasetJob, DatasetReply
from sam2_backend.embedding_cache import EmbeddingCache, EmbeddingKey
from sam2_backend.engine import ImageEmbedding, Sam2Engine
from sam2_backend.errors import MediaUnreadableError, Sam2BackendError
from sam2_backend.images import ImageInfo, Orientation, load_rgb, orientation_for
from sam2_backend.jobs import LongWork, Usage
from sam2_backend.media import MediaFile, MediaStore
from sam2_backend.messages import CacheTier, ImageJob, ImagePrompt, ImageReply, MediaRef, ObjectMask, WarmJob
from sam2_backend.preannotation import Preannotation
from sam2_backend.refinement import LogitsCache, OnImage, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    image_hash: str
    key: str
    embedding: ImageEmbedding
    tier: CacheTier


@dataclass(frozen=True, slots=True)
class _Turn:
    """One of several jobs that are done together."""

    place: int
    job: ImageJob
    found: _Found
    clock: Clock


class _ImageChangedError(Exception):
    """The media index named another image than the one that was fetched just now."""


@dataclass(frozen=True, slots=True)
class Segmenter:
    """One engine with its caches: the runtime that a worker installs.

    Used by the worker's main thread alone, apart from `usage`.
    """

    engine: Sam2Engine
    store: MediaStore
    embeddings: EmbeddingCache
    logits: LogitsCache
    worker_name: str
    max_pixels: int
    propagator: LongWork
    preannotation: Preannotation

    @property
    def model_version(self) -> str:
        return self.engine.model_version

    @property
    def device(self) -> str:
        return str(self.engine.device)

    @property
    def prompts_together(self) -> int:
        """So many prompts gain by being decoded in one call; 1: none does."""
        return self.engine.prompts_per_batch

    def is_ready(self, job: ImageJob) -> bool:
        """The image's embedding is in this process: a click costs the decoder and nothing before it."""
        key = self._indexed_key(job.media, job.size_hw)
        return key is not None and self.embeddings.is_at_hand(key)

    def segment(self, job: ImageJob, let_others: Callable[[], None] | None = None) -> ImageReply:
        """One mask per prompt, in the order and at the size of the job.

        Args:
            let_others: See `warm`.

        Raises:
            MediaError: the image cannot be had, or is not what the client sees.
            GpuMemoryError: the device is full, also after its cache tier was emptied.
        """
        clock = Clock()
        found = self._embedding(job.media, job.size_hw, clock, let_others)
        with clock.step("decode"):
            steps = self.embeddings.with_room(
                lambda: refinement.segment(self.engine, found.embedding, found.key, job.prompts, job.size_hw, job.options, self.logits)
            )
        return self._segmented(job, found, steps, clock)

    def segment_together(self, jobs: Sequence[ImageJob]) -> Iterator[list[tuple[int, ImageReply]]]:
        """What `segment` answers to each, with its place among them; in rounds, each reply as soon as it is known.

        A job with whose image or mask something is wrong gets no reply here: `segment` says what.

        Raises:
            GpuMemoryError: the device is too full for all of them together.
        """
        decoding = Clock()
        turns = [turn for place, job in enumerate(jobs) if (turn := self._turn(place, job))]
        on_images = [OnImage(t.found.embedding, t.found.key, t.job.prompts, t.job.size_hw, t.job.options) for t in turns]
        rounds = refinement.segment_together(self.engine, on_images, self.logits)
        while True:
            with decoding.step("decode"):
                done = next(rounds, None)
            if done is None:
                return
            yield [(turns[i].place, reply) for i, steps in done if (reply := self._reply_in_turn(turns[i], steps, decoding))]

    def warm(self, job: WarmJob, let_others: Callable[[], None] | None = None) -> ImageReply:
        """Make and keep the embedding, upright as a browser would show the image, in every tier.

        Args:
            let_others: Called in the middle of an encoder run; does clicks whose image is ready, and nothing else.

        Raises:
            MediaError, GpuMemoryError: as for `segment`.
        """
        clock = Clock()
        found = self._embedding(job.media, None, clock, let_others)
        if found.tier in {"device", "host"}:
            self.embeddings.share(found.key)
        return self._reply("warm", found, clock, ())

    def preannotate(self, job: DatasetJob, let_others: Callable[[], None]) -> DatasetReply:
        """See `Preannotation.answer`."""
        return self.preannotation.answer(job, let_others)

    def usage(self) -> Usage:
        stats = self.embeddings.stats()
        used, total = 0, 0
        if self.engine.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.engine.device)
            used = total - free
        return Usage(stats.device_bytes, stats.host_bytes, used, total, {tier: float(count) for tier, count in stats.hits.items()})

    def _turn(self, place: int, job: ImageJob) -> _Turn | None:
        clock = Clock()
        try:
            return _Turn(place, job, self._embedding(job.media, job.size_hw, clock), clock)
        except Sam2BackendError:
            return None

    def _reply_in_turn(self, turn: _Turn, steps: Sequence[Step | None], decoding: Clock) -> ImageReply | None:
        turn.clock.spent_ms |= decoding.spent_ms
        try:
            return self._segmented(turn.job, turn.found, steps, turn.clock)
        except Sam2BackendError:
            return None

    def _segmented(self, job: ImageJob, found: _Found, steps: Sequence[Step | None], clock: Clock) -> ImageReply:
        with clock.step("runs"):
            objects = tuple(_finished(self.engine, prompt, step, job) for prompt, step in zip(job.prompts, steps, strict=True))
        return self._reply("segment", found, clock, objects)

    def _embedding(
        self, media: MediaRef, shown_size_hw: tuple[int, int] | None, clock: Clock, let_others: Callable[[], None] | None = None
    ) -> _Found:
        with clock.step("media"):
            key = self._indexed_key(media, shown_size_hw)
        for _ in range(2):
            file = None
            if key is None:
                with clock.step("media"):
                    file = self.store.fetch(media)
                key = self._key(file.image_hash, file.info, shown_size_hw)
            try:
                with clock.step("embed"):
                    embedding, tier = self.embeddings.get_or_make(key, partial(self._make, media, file, key, clock, let_others))
                return _Found(key.image_hash, key.text, embedding, tier)
            except _ImageChangedError:
                key = None
        raise MediaUnreadableError("The image changes each time it is fetched. Give every image an address of its own.")

    def _indexed_key(self, media: MediaRef, shown_size_hw: tuple[int, int] | None) -> EmbeddingKey | None:
        known = self.store.lookup(media)
        if known is None:
            return None
        try:
            return self._key(*known, shown_size_hw)
        except MediaUnreadableError:
            self.store.forget(media)  # the client sees another image than the index remembers: the source decides
            return None

    def _key(self, image_hash: str, info: ImageInfo, shown_size_hw: tuple[int, int] | None) -> EmbeddingKey:
        return EmbeddingKey(image_hash, self.engine.model_id, self.engine.preprocessing, orientation_for(info, shown_size_hw))

    def _make(
        self, media: MediaRef, file: MediaFile | None, key: EmbeddingKey, clock: Clock, let_others: Callable[[], None] | None
    ) -> ImageEmbedding:
        with clock.step("media"):
            fetched = file or self.store.fetch(media)
            if fetched.image_hash != key.image_hash:
                raise _ImageChangedError
            image = load_rgb(fetched.data, cast("Orientation", key.orientation), self.max_pixels)

        def give_way() -> None:
            if let_others:
                with clock.step("queue"):
                    let_others()

        return self.embeddings.with_room(lambda: self.engine.embed(image, give_way if let_others else None))

    def _reply(self, kind: str, found: _Found, clock: Clock, objects: tuple[ObjectMask, ...]) -> ImageReply:
        fields = {"kind": kind, "image": found.image_hash[:6], "prompts": len(objects), "cache": found.tier}
        fields |= {f"{step}_ms": round(ms, 1) for step, ms in clock.spent_ms.items()}
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        log.info("job %s", text, extra={"event_name": "job", "event_fields": fields})
        return ImageReply(found.image_hash, self.engine.model_version, self.worker_name, found.tier, objects, clock.spent_ms)


def _finished(engine: Sam2Engine, prompt: ImagePrompt, step: Step | None, job: ImageJob) -> ObjectMask:
    """The mask of a prompt's last step as the project wants it: holes filled, islands removed, cut to the prompt's polygon."""
    size_hw, options = job.size_hw, job.options
    if step is None:
        return ObjectMask(prompt.prompt_id, masks.runs_from_mask(np.zeros(size_hw, dtype=bool)), 0.0)
    if not (options.fill_holes_px or options.remove_sprinkles_px or prompt.clip_xy_px):
        return ObjectMask(prompt.prompt_id, engine.runs(step.logits, size_hw, options.mask_threshold), step.score)
    mask = engine.upsample(step.logits, size_hw, options.mask_threshold)
    mask = masks.clean(mask, options.fill_holes_px, options.remove_sprinkles_px)
    if prompt.clip_xy_px:
        mask = mask & masks.fill_polygon(prompt.clip_xy_px, size_hw)
    return ObjectMask(prompt.prompt_id, masks.runs_from_mask(mask), step.score)
