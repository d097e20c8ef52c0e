"""SAM 2 for scripts: images in, masks out, without Label Studio and without Redis.

>>> import numpy as np
>>> from sam2_backend.client import Sam2
>>> y, x = np.mgrid[:240, :320]
>>> disc = np.hypot(x - 160, y - 120) < 60
>>> photo = np.where(disc[..., None], (220, 60, 40), (70, 110, 90)).astype(np.uint8)
>>> sam2 = Sam2.load("demo")
>>> image = sam2.image(photo)  # or a path, or the bytes of a file

A click, or several with a box:

>>> found = image.click([(160, 120)])
>>> found.mask.shape, bool(found.mask[120, 160]), bool(found.mask[5, 5])
((240, 320), True, False)

Boxes to masks, all in one call:

>>> [cup] = image.boxes([(95, 55, 225, 185)], labels=["Cup"])
>>> cup.label, [round(edge, -1) for edge in cup.box_xyxy_px]
('Cup', [100, 60, 220, 180])

Everything there is, with the parameters of SAM2AutomaticMaskGenerator:

>>> masks = image.everything(points_per_side=8, pred_iou_thresh=0.5, stability_score_thresh=0.8, stability_score_offset=0.2)
>>> max(np.count_nonzero(m.mask & disc) / np.count_nonzero(m.mask | disc) for m in masks) > 0.9
True

By text (`pip install 'sam2-label-studio[detect]'`) and by examples:

>>> sam2 = Sam2.load("sam2.1_hiera_tiny", detector="IDEA-Research/grounding-dino-tiny")  # doctest: +SKIP
>>> cats = sam2.image("cat.jpg").text({"Cat": "a cat"})  # doctest: +SKIP
>>> memory = sam2.remember([(sam2.image("cat.jpg"), cats[0].mask, "Cat")])  # doctest: +SKIP
>>> sam2.image("another.jpg").similar(memory)  # doctest: +SKIP
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam2_backend import masks
from sam2_backend.automatic import everything
from sam2_backend.box_masks import masks_of_boxes
from sam2_backend.dataset_messages import DatasetMask, EverythingOptions, LabelledBox, LabelText, SimilarOptions
from sam2_backend.detector import Detector, load_detector
from sam2_backend.embedding import ImageEmbedding
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import PromptError
from sam2_backend.images import inspect, load_rgb, orientation_for
from sam2_backend.messages import RunLengths
from sam2_backend.settings import Settings
from sam2_backend.similar import Memory, masks_like
from sam2_backend.text_masks import TextSearch, find_texts, masks_of_detections

PixelBox = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, slots=True)
class Found:
    """One object.

    Attributes:
        runs: Its mask, as run lengths.
        score: 0 to 1: the estimated IoU; by text the detector's; by examples the confidence that the object is there.
    """

    label: str
    runs: RunLengths
    score: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, made anew each time."""
        return masks.mask_from_runs(self.runs)

    @property
    def box_xyxy_px(self) -> tuple[int, int, int, int]:
        """The tightest box, right and bottom exclusive; four 0 for an empty mask."""
        return masks.box_xyxy_px(self.runs) or (0, 0, 0, 0)

    @property
    def area_px(self) -> int:
        return masks.area_px(self.runs)


class Sam2:
    """A model in this process. Used by one thread at a time."""

    def __init__(self, engine: Sam2Engine, detector: str = "") -> None:
        self.engine = engine
        self._detector = functools.cache(functools.partial(load_detector, detector, engine.device))

    @classmethod
    def load(cls, model: str = "auto", *, device: str = "auto", detector: str = "", **settings: Any) -> Sam2:
        """Load a model.

        Args:
            model: As SAM2_MODEL.
            device: auto, cpu, mps, cuda or cuda:N.
            detector: For `text`: as SAM2_DETECTOR.
            settings: Any others, by their names in `Settings`.

        Raises:
            BadCheckpointError, SettingsError: see `Sam2Engine.load`.
        """
        return cls(Sam2Engine.load(Settings(model=model, device=device, **settings)), detector)

    def image(self, source: str | Path | bytes | NDArray[np.uint8]) -> Sam2Image:
        """An image file, its bytes, or (H, W, 3) uint8 RGB; files are turned upright as a browser shows them.

        Raises:
            MediaError: it cannot be read.
        """
        if not isinstance(source, np.ndarray):
            data, most_px = source if isinstance(source, bytes) else Path(source), Settings().media_max_pixels
            source = load_rgb(data, orientation_for(inspect(data, most_px), None), most_px)
        return Sam2Image(self, source)

    def remember(self, examples: Iterable[tuple[Sam2Image, NDArray[np.bool_], str]], max_examples: int = 6) -> Memory:
        """What `Sam2Image.similar` looks for: accepted regions as (image, mask (H, W) bool, label), the first ones of each label.

        Raises:
            BadCheckpointError: the model has no memory.
        """
        memory = Memory.empty(self.engine, SimilarOptions(max_examples))
        for image, mask, label in examples:
            if memory.n_examples.get(label, 0) < max_examples:
                memory.add(label, image.embedding, mask)
        return memory

    def detector(self) -> Detector:
        """Loaded on the first call.

        Raises:
            DetectorError: there is none.
        """
        return self._detector()


class Sam2Image:
    """One image; encoded on first use, then kept.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        size_hw: Height and width.
    """

    def __init__(self, sam2: Sam2, pixels: NDArray[np.uint8]) -> None:
        self._sam2, self.pixels, self.size_hw = sam2, pixels, (pixels.shape[0], pixels.shape[1])

    @functools.cached_property
    def embedding(self) -> ImageEmbedding:
        return self._sam2.engine.embed(self.pixels)

    def click(self, points_xy_px: ArrayLike = (), is_positive: Sequence[bool] | None = None, box_xyxy_px: PixelBox | None = None) -> Found:
        """The object that points (n, 2) and a box show; is_positive tells for each point whether it lies in the object.

        Raises:
            PromptError: there is neither a point nor a box.
        """
        points = np.asarray(points_xy_px, dtype=np.float64).reshape(-1, 2)
        if not len(points) and box_xyxy_px is None:
            raise PromptError("There is neither a point nor a box. Give one.")
        signs = np.ones(len(points), dtype=np.bool_) if is_positive is None else np.asarray(is_positive, dtype=np.bool_)
        made = self._sam2.engine.decode(
            self.embedding,
            points_xy_px=points,
            is_positive=signs,
            box_xyxy_px=box_xyxy_px,
            size_hw=self.size_hw,
            multimask=len(points) == 1 and box_xyxy_px is None,
        )
        return Found("", self._sam2.engine.runs(made.logits[0], self.size_hw), float(made.scores[0]))

    def boxes(self, boxes_xyxy_px: Sequence[PixelBox], labels: Sequence[str] | None = None) -> list[Found]:
        """A mask for each box, in their order.

        Raises:
            PromptError: a box has no area in the image, or there is nothing in it.
        """
        height, width = self.size_hw
        names = labels or [""] * len(boxes_xyxy_px)
        asked = [
            LabelledBox(f"box {i}", (box[0] / width, box[1] / height, box[2] / width, box[3] / height), name)
            for i, (box, name) in enumerate(zip(boxes_xyxy_px, names, strict=True))
        ]
        found, skipped = masks_of_boxes(self._sam2.engine, self.embedding, self.size_hw, asked)
        if skipped:
            raise PromptError(f"{skipped[0].what}: {skipped[0].reason}")
        return _as_found(found)

    def everything(self, **options: Any) -> list[Found]:
        """Masks of all there is, best first; for the options see `EverythingOptions`."""
        made = everything(self._sam2.engine, self.pixels, EverythingOptions(**options), self.embedding)
        return [Found("", mask.runs, mask.score) for mask in made]

    def text(self, texts: Mapping[str, str], min_score: float = 0.0) -> list[Found]:
        """What is described, best first.

        Args:
            texts: Label → words.
            min_score: Of the detector; 0: its own.

        Raises:
            DetectorError: there is no detector.
            PromptError: no text has a word in it.
        """
        search = TextSearch([LabelText(label, text) for label, text in texts.items()], min_score)
        detections, _ = find_texts(self._sam2.detector(), self.pixels, search)
        return _as_found(masks_of_detections(self._sam2.engine, self.embedding, self.size_hw, detections)[0])

    def similar(self, memory: Memory, *, splits_parts: bool = False) -> list[Found]:
        """What the image has of the remembered kinds, surest first: one mask per label, see `SimilarOptions.splits_parts`."""
        options = SimilarOptions(splits_parts=splits_parts)
        return _as_found(masks_like(self._sam2.engine, memory, self.embedding, self.size_hw, options))


def _as_found(found: Sequence[DatasetMask]) -> list[Found]:
    return [Found(mask.label, mask.runs, mask.score) for mask in found]
