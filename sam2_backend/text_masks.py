"""Words → boxes by a detector → masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sam2_backend.box_masks import masks_of_boxes
from sam2_backend.dataset_messages import DatasetMask, LabelledBox, LabelText, Skipped
from sam2_backend.detector import Detection, Detector
from sam2_backend.embedding import ImageEmbedding
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import PromptError
from sam2_backend.images import RgbImage
from sam2_backend.messages import MaskOptions
from sam2_backend.text_tokens import usable_texts

#: A detector that is asked for anything finds hundreds of boxes.
_MOST_BOXES = 300


@dataclass(frozen=True, slots=True)
class TextSearch:
    """What to look for.

    Attributes:
        min_score: Of the detector; 0: its own.
        limit: At most so many masks; 0: as many as the detector finds, up to 300.
    """

    texts: Sequence[LabelText]
    min_score: float = 0.0
    limit: int = 0


def find_texts(detector: Detector, image: RgbImage, search: TextSearch) -> tuple[list[Detection], list[Skipped]]:
    """Boxes of (H, W, 3) uint8 RGB, best first, and the texts that were not looked for.

    Raises:
        PromptError: no text has a word in it.
        GpuMemoryError: the device is full.
    """
    texts, skipped = usable_texts(search.texts)
    if not texts:
        raise PromptError("There is no text to look for. Give the config labels, or the project a prompt.")
    return detector.find(image, texts, search.min_score or detector.min_score)[: search.limit or _MOST_BOXES], skipped


def masks_of_detections(
    engine: Sam2Engine,
    embedding: ImageEmbedding,
    size_hw: tuple[int, int],
    detections: Sequence[Detection],
    options: MaskOptions = MaskOptions(),  # noqa: B008  immutable
    between_batches: Callable[[], None] = lambda: None,
) -> tuple[list[DatasetMask], list[Skipped]]:
    """A mask with the detector's score for each box, in their order, and the boxes that none could be made of, by label.

    Raises:
        GpuMemoryError: the device is full.
    """
    boxes = [LabelledBox(str(i), detection.box, detection.label) for i, detection in enumerate(detections)]
    found, skipped = masks_of_boxes(engine, embedding, size_hw, boxes, options, between_batches)
    masks = [replace(mask, score=detections[int(mask.source)].score, source="") for mask in found]
    return masks, [Skipped(detections[int(skip.what)].label, skip.reason) for skip in skipped]
