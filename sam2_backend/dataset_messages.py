"""What crosses the queue for the pre-annotation of whole datasets, beside `messages`. Standard library only; the same codec.

The web tier does not know the size of an image that nobody has opened, so boxes are shares of it, 0 to 1, in both directions; masks are
run lengths at the size that the reply names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sam2_backend.messages import CacheTier, MaskOptions, MediaRef, RunLengths

DatasetMode = Literal["boxes", "everything", "text", "similar"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the image, 0 to 1."""


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """A rectangle that becomes a mask.

    Attributes:
        box_id: The id of its region; names it in the reply.
        box: Parts outside the image are cut off.
        label: Comes back with the mask; may be empty.
    """

    box_id: str
    box: Box
    label: str = ""


@dataclass(frozen=True, slots=True)
class LabelText:
    """What to look for in mode `text`.

    Attributes:
        label: Comes back with the masks.
        text: What the detector is asked for: the label's name, or words that describe it better.
    """

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """A region that people accepted on another image: what `similar` looks for.

    Attributes:
        media: Its image.
        label: Comes back with the masks that are found by it.
        mask: At the size of its image as shown; or
        box: a box, which is made a mask first. Where there are both, the mask counts.
    """

    media: MediaRef
    label: str
    mask: RunLengths | None = None
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class EverythingOptions:
    """Mode `everything`, under the names and with the defaults of SAM2AutomaticMaskGenerator.

    Attributes:
        points_per_side: Points in a row of the grid that is asked about; 1 to 256.
        points_per_batch: So many are decoded at a time: more is faster on a GPU and takes more memory.
        pred_iou_thresh: Masks whose estimated IoU is not above it are dropped; 0: none is.
        stability_score_thresh: Masks less stable than this are dropped; 0: none is.
        stability_score_offset: How far the threshold is moved, both ways, to see how stable a mask is.
        mask_threshold: Logits above it are mask.
        box_nms_thresh: Of two masks of one crop whose boxes overlap by more (IoU), the one with the lower score is dropped.
        crop_n_layers: The image is also looked at in 4, then 16, … overlapping crops; 0: as a whole alone; at most 3.
        crop_nms_thresh: As `box_nms_thresh`, between crops; masks of smaller crops stay.
        crop_overlap_ratio: How much the crops overlap, as a share of the shorter side.
        crop_n_points_downscale_factor: In layer n the grid has points_per_side / factor**n points in a row.
        min_mask_region_area: Holes and islands with fewer pixels are removed; then masks that became alike.
        use_m2m: Each mask is given to the decoder once more, to be refined.
        multimask_output: Three masks per point; False: one.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    mask_threshold: float = 0.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    use_m2m: bool = False
    multimask_output: bool = True


@dataclass(frozen=True, slots=True)
class SimilarOptions:
    """Mode `similar`.

    Attributes:
        max_examples: So many examples are read per label, the first ones; at most 16.
        splits_parts: The model finds one mask per label, which may cover several objects; True: parts that do not touch become
            regions of their own.
    """

    max_examples: int = 6
    splits_parts: bool = False


@dataclass(frozen=True, slots=True)
class DatasetJob:
    """Annotate one image before anyone looks at it.

    Attributes:
        media: The image.
        mode: Which of the fields below are read.
        boxes: For `boxes`.
        label: For `everything`: the label of every mask.
        texts: For `text`.
        examples: For `similar`.
        everything, similar: See there.
        mask: Holes, sprinkles and threshold of every mask, in all modes but `everything`, whose options say it.
        min_score: Masks below it are left out. The score is the estimated IoU; of `text` the detector's; of `similar` the confidence
            that the object is there.
        limit: At most so many masks, the best ones; 0: all.
    """

    media: MediaRef
    mode: DatasetMode
    boxes: tuple[LabelledBox, ...] = ()
    label: str = ""
    texts: tuple[LabelText, ...] = ()
    examples: tuple[Example, ...] = ()
    everything: EverythingOptions = EverythingOptions()
    similar: SimilarOptions = SimilarOptions()
    mask: MaskOptions = MaskOptions()
    min_score: float = 0.0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class DatasetMask:
    """One region.

    Attributes:
        label: May be empty.
        runs: The mask, at the reply's `size_hw`; never empty.
        score: 0 to 1, see `DatasetJob.min_score`.
        box: The tightest one around the mask.
        area_px: Pixels of the mask.
        source: For `boxes` the `box_id`; else empty.
    """

    label: str
    runs: RunLengths
    score: float
    box: Box
    area_px: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A box, text or example that was left out, and why; the others were done.

    Attributes:
        what: The `box_id`, the label of a text, `example N of LABEL`, or `everything` where no mask passed the limits.
        reason: A sentence for people.
    """

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class DatasetReply:
    """What a worker answers to a DatasetJob.

    Attributes:
        size_hw: Height and width of the image as a browser shows it.
        masks: Best first; for `boxes` in the order of the boxes.
        timings_ms: `queue`, `media`, `embed`, `detect`, `decode` (which makes the run lengths), and `others`, the clicks that went
            before in the middle; as far as they happened; milliseconds.
    """

    image_hash: str
    size_hw: tuple[int, int]
    model_version: str
    worker: str
    cache: CacheTier
    masks: tuple[DatasetMask, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
