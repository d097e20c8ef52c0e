"""One image of a dataset through one of the modes: DatasetJob → DatasetReply. What the worker serves; see `client` for scripts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sam2_backend.automatic import everything
from sam2_backend.box_masks import masks_of_boxes
from sam2_backend.clock import Clock
from sam2_backend.dataset_messages import DatasetJob, DatasetMask, DatasetReply, Skipped
from sam2_backend.pictures import Atelier, Picture
from sam2_backend.regions_found import best, region

log = logging.getLogger(__name__)

_Found = tuple[list[DatasetMask], list[Skipped]]


@dataclass(frozen=True, slots=True)
class Preannotation:
    """The modes over a worker's engine and caches. Used by the worker's main thread alone.

    Attributes:
        atelier: Makes pictures of addresses.
        worker_name: For the reply.
    """

    atelier: Atelier
    worker_name: str

    def answer(self, job: DatasetJob, let_others: Callable[[], None] = lambda: None) -> DatasetReply:
        """Annotate one image.

        Args:
            let_others: Called between steps, when engine and caches are free for others.

        Raises:
            MediaError: the image cannot be had.
            PromptError: an option is out of its range, or there is nothing to look for.
            GpuMemoryError: the device is full, also after its cache tier was emptied.
        """
        clock = Clock()
        picture = self.atelier.open(job.media, clock)

        def pause() -> None:
            with clock.step("others"):
                let_others()

        modes = {"boxes": self._boxes, "everything": self._everything}
        with clock.step("decode"):
            found, skipped = self.atelier.embeddings.with_room(lambda: modes[job.mode](job, picture, pause))
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

    def _boxes(self, job: DatasetJob, picture: Picture, pause: Callable[[], None]) -> _Found:
        return masks_of_boxes(self.atelier.engine, picture.embedding(), picture.size_hw, job.boxes, job.mask, pause)

    def _everything(self, job: DatasetJob, picture: Picture, pause: Callable[[], None]) -> _Found:
        made = everything(self.atelier.engine, picture.pixels(), job.everything, picture.embedding(), pause)
        return [mask for m in made if (mask := region(m.runs, m.score, job.label))], []
