"""One image of a dataset through one of the modes: DatasetJob → DatasetReply. What the worker serves; see `client` for scripts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sam2_backend.automatic import everything, why_nothing
from sam2_backend.box_masks import masks_of_boxes
from sam2_backend.clock import Clock
from sam2_backend.dataset_messages import DatasetJob, DatasetMask, DatasetReply, Skipped
from sam2_backend.detector import Detector
from sam2_backend.example_memories import ExampleMemories
from sam2_backend.pictures import Atelier, Picture
from sam2_backend.regions_found import best, region
from sam2_backend.similar import masks_like
from sam2_backend.text_masks import TextSearch, find_texts, masks_of_detections

log = logging.getLogger(__name__)

_Found = tuple[list[DatasetMask], list[Skipped]]


@dataclass(frozen=True, slots=True)
class Preannotation:
    """The modes over a worker's engine and caches. Used by the worker's main thread alone.

    Attributes:
        atelier: Makes pictures of addresses.
        worker_name: For the reply.
        memories: Made of examples.
        detector: Loads the detector, once.
    """

    atelier: Atelier
    worker_name: str
    memories: ExampleMemories
    detector: Callable[[], Detector]

    def answer(self, job: DatasetJob, let_others: Callable[[], None] = lambda: None) -> DatasetReply:
        """Annotate one image.

        Args:
            let_others: Called between steps, when engine and caches are free for others.

        Raises:
            MediaError: the image cannot be had.
            PromptError: an option is out of its range, or there is nothing to look for.
            DetectorError: there is no detector for `text`.
            BadCheckpointError: the model has no memory for `similar`.
            GpuMemoryError: the device is full, also after its cache tier was emptied.
        """
        clock = Clock()
        picture = self.atelier.open(job.media, clock)

        def pause() -> None:
            with clock.step("others"):
                let_others()

        modes = {"boxes": self._boxes, "everything": self._everything, "text": self._text, "similar": self._similar}
        with clock.step("decode"):
            found, skipped = self.atelier.embeddings.with_room(lambda: modes[job.mode](job, picture, clock, pause))
        fields = {"kind": job.mode, "image": picture.image_hash[:6], "masks": len(found), "skipped": len(skipped), "cache": picture.tier}
        fields |= {f"{step}_ms": round(ms, 1) for step, ms in clock.spent_ms.items()}
        log.info("job %s", " ".join(f"{k}={v}" for k, v in fields.items()), extra={"event_name": "job", "event_fields": fields})
        return DatasetReply(
            picture.image_hash,
            picture.size_hw,
            self.atelier.engine.model_version,
            self.worker_name,
            picture.tier,
            best(found, job.min_score, job.limit),
            tuple(skipped),
            clock.spent_ms,
        )

    def _boxes(self, job: DatasetJob, picture: Picture, _clock: Clock, pause: Callable[[], None]) -> _Found:
        return masks_of_boxes(self.atelier.engine, picture.embedding(), picture.size_hw, job.boxes, job.mask, pause)

    def _everything(self, job: DatasetJob, picture: Picture, _clock: Clock, pause: Callable[[], None]) -> _Found:
        made = everything(self.atelier.engine, picture.pixels(), job.everything, picture.embedding(), pause)
        if not made:
            return [], [Skipped("everything", why_nothing(self.atelier.engine, picture.embedding(), picture.size_hw, job.everything))]
        return [mask for m in made if (mask := region(m.runs, m.score, job.label))], []

    def _text(self, job: DatasetJob, picture: Picture, clock: Clock, pause: Callable[[], None]) -> _Found:
        with clock.step("detect"):
            detections, skipped = find_texts(self.detector(), picture.pixels(), TextSearch(job.texts, job.min_score, job.limit))
        pause()
        embedding = picture.embedding()
        found, without_mask = masks_of_detections(self.atelier.engine, embedding, picture.size_hw, detections, job.mask, pause)
        return found, skipped + without_mask

    def _similar(self, job: DatasetJob, picture: Picture, clock: Clock, pause: Callable[[], None]) -> _Found:
        memory, skipped = self.memories.of(job.examples, job.similar, clock, pause)
        embedding = picture.embedding()
        return masks_like(self.atelier.engine, memory, embedding, picture.size_hw, job.similar, job.mask), list(skipped)
