"""A decoded frame as upright RGB pixels: the display matrix of the file applied, as a browser does."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace

from sam2_backend.images import RgbImage

MATRIX_BYTES = 36
UNTOLD = 2
"""AVCOL_SPC_UNSPECIFIED: the file does not say how its colours are coded."""
HD_LINES = 720


@dataclass(frozen=True, slots=True)
class Turn:
    """How a stored frame becomes the shown one: transposed, then mirrored left-right and top-bottom."""

    transposes: bool = False
    mirrors_x: bool = False
    mirrors_y: bool = False

    def size_hw(self, stored_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width as shown."""
        height, width = stored_hw
        return (width, height) if self.transposes else (height, width)

    def apply(self, stored: RgbImage) -> RgbImage:
        """(H, W, 3) as stored to (H', W', 3) as shown, contiguous."""
        turned = stored.swapaxes(0, 1) if self.transposes else stored
        return np.ascontiguousarray(turned[:: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1])


def turn_of(frame: VideoFrame) -> Turn:
    """The quarter turns and mirrorings of a frame's display matrix.

    Source: ISO/IEC 14496-12, section 6.2.2: a stored (x, y) is shown at (a·x + c·y, b·x + d·y); offsets only move it back into view.
    """
    a, b, c, d = _matrix(frame)
    if abs(a) >= abs(b):
        return Turn(transposes=False, mirrors_x=a < 0, mirrors_y=d < 0)
    return Turn(transposes=True, mirrors_x=c < 0, mirrors_y=b < 0)


def _matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """The quarter of the matrix that turns and mirrors, a, b, c, d, up to a factor."""
    try:
        blocks: list[SideData] = list(cast("Any", frame.side_data))  # PyAV's stub says that keys come out; blocks do
    except ValueError:  # a kind of data that PyAV has no name for hides the others; the angle it still tells
        angle = math.radians(frame.rotation)
        return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    matrix = next((bytes(block) for block in blocks if block.type is SideDataType.DISPLAYMATRIX), b"")
    if len(matrix) < MATRIX_BYTES:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack_from("=9i", matrix)
    return a, b, c, d


def upright_rgb(frame: VideoFrame, turn: Turn) -> RgbImage:
    """(H, W, 3) uint8 RGB as shown. One thread converts, so that the bytes do not depend on the machine.

    Source: what a file without colour space means was measured in Chromium 156 at 240 and 720 lines.
    """
    is_hd_untold = frame.colorspace == UNTOLD and frame.height >= HD_LINES
    colour_space = Colorspace.ITU709 if is_hd_untold else None
    return turn.apply(np.asarray(frame.to_ndarray(format="rgb24", src_colorspace=colour_space, threads=1), dtype=np.uint8))
