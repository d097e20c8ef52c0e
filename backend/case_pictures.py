"""A worst case as a picture: the part of its image around both masks, as JPEG inside the page, with both outlines as paths over it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.data_uri import data_uri_bytes, is_data_uri
from backend.evaluation_scores import WorstCase
from sam2_backend.errors import MediaError, Sam2BackendError
from sam2_backend.images import RgbImage, inspect, load_rgb, orientation_for
from sam2_backend.masks import Mask, box_xyxy_px, mask_from_runs
from sam2_backend.media import MediaStore
from sam2_backend.messages import MediaRef, RunLengths
from sam2_backend.settings import Settings

LONGEST_SIDE_PX = 480
"""Of a picture. A crop that is larger is scaled down."""

_MARGIN = 0.2
_LEAST_MARGIN_PX = 12
_JPEG_QUALITY = 82
_EPSILON_PX, _MOST_RINGS = 0.4, 300
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class CasePicture:
    """A picture as the page shows it.

    Attributes:
        width, height: Of the crop in pixels as shown; paths have these units.
        jpeg: As a `data:` URI.
        predicted, annotated: SVG paths of the outlines.
    """

    width: int
    height: int
    jpeg: str
    predicted: str
    annotated: str


class CasePictures:
    """Makes pictures; images are fetched as workers fetch them, under the same limits, and kept in the same folder."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._media = MediaStore(settings, None)

    def picture(self, case: WorstCase) -> CasePicture:
        """A case's picture.

        Raises:
            Sam2BackendError: its image cannot be had, or is not the one that was annotated.
        """
        prediction, annotation = case.pair.prediction, case.pair.annotation
        assert prediction is not None
        assert annotation is not None
        if case.problem:
            raise MediaError(case.problem)
        image = self._image(case.uri, annotation.mask.size_hw)
        if image.shape[:2] != annotation.mask.size_hw:
            height, width = annotation.mask.size_hw
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return drawn(image, prediction.mask, annotation.mask)

    def _image(self, uri: str, shown_size_hw: tuple[int, int]) -> RgbImage:
        limit = self._settings.media_max_pixels
        if is_data_uri(uri):
            data = data_uri_bytes(uri, self._settings.media_max_bytes)
            info = inspect(data, limit)
        else:
            file = self._media.fetch(MediaRef(uri))
            data, info = file.data, file.info
        return load_rgb(data, orientation_for(info, shown_size_hw), limit)


def drawn(image: RgbImage, predicted: RunLengths, annotated: RunLengths) -> CasePicture:
    """The part of an image (H, W, 3) around two masks of its size, with their outlines."""
    left, top, right, bottom = _crop(predicted, annotated)
    scale = min(1.0, LONGEST_SIDE_PX / max(right - left, bottom - top))
    width, height = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
    paths = [_path(mask_from_runs(runs)[top:bottom, left:right], scale) for runs in (predicted, annotated)]
    part = Image.fromarray(image[top:bottom, left:right])
    file = io.BytesIO()
    part.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    jpeg = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return CasePicture(width, height, jpeg, *paths)


def no_picture(error: Sam2BackendError) -> str:
    """Why a case has none, for the page."""
    return f"No picture: {error.message}"


def _crop(a: RunLengths, b: RunLengths) -> Box:
    """The box around two masks with a margin, within their image: left, top, right, bottom."""
    height, width = a.size_hw
    boxes = np.array([box for box in (box_xyxy_px(a), box_xyxy_px(b)) if box] or [(0, 0, width, height)])
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    margin = max(int(_MARGIN * max(right - left, bottom - top)), _LEAST_MARGIN_PX)
    return max(left - margin, 0), max(top - margin, 0), min(right + margin, width), min(bottom + margin, height)


def _path(mask: Mask, scale: float) -> str:
    """Outer rings and holes of a mask as an SVG path in scaled pixels, through the middles of its border pixels; the largest of thousands."""
    rings, _ = cv2.findContours(np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    largest = sorted(rings, key=len, reverse=True)[:_MOST_RINGS]
    return "".join(_ring((cv2.approxPolyDP(ring, _EPSILON_PX / scale, closed=True)[:, 0] + 0.5) * scale) for ring in largest)


def _ring(points_xy: NDArray[np.float64]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points_xy.tolist()) + "Z"
