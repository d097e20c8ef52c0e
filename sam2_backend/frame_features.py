"""The encoder's feature maps of a video's frames: made once per frame for all objects."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from sam2_backend.embedding import ImageEmbedding
from sam2_backend.embedding_cache import EmbeddingCache, EmbeddingKey
from sam2_backend.engine import Sam2Engine
from sam2_backend.frame_sources import Frames
from sam2_backend.images import RgbImage
from sam2_backend.network import FeatureMaps

#: A source of up to so many frames shares the image cache, where the clicks on its pages find them; a longer one would flush it.
MOST_SHARED_FRAMES = 32
#: Frames out of turn (keyframes that several objects or runs are conditioned on) that are kept otherwise; 8 MiB each at 16 bit.
_MOST_KEPT = 4


class FrameFeatures:
    """Feature maps by frame_idx. Used by one thread.

    Args:
        shared: The worker's image cache.
    """

    def __init__(self, engine: Sam2Engine, frames: Frames, shared: EmbeddingCache) -> None:
        self._engine, self._frames, self._shared = engine, frames, shared
        self._is_short = frames.n_frames <= MOST_SHARED_FRAMES
        self._kept: OrderedDict[int, ImageEmbedding] = OrderedDict()

    def of(self, frame_idx: int, image: RgbImage) -> FeatureMaps:
        """The maps of the frame whose turn it is.

        Raises:
            GpuMemoryError: the device is full, also after the image cache left it.
        """
        if frame_idx in self._kept:
            return self._kept[frame_idx].maps
        return self._made(frame_idx, lambda: image).maps

    def out_of_turn(self, frame_idx: int) -> FeatureMaps:
        """The maps of any frame; decodes it.

        Raises:
            VideoError, MediaError: it cannot be decoded.
            GpuMemoryError: as for `of`.
        """
        if frame_idx not in self._kept:
            self._kept[frame_idx] = self._made(frame_idx, lambda: self._frames.read(frame_idx))
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(frame_idx)
        return self._kept[frame_idx].maps

    def _made(self, frame_idx: int, image: Callable[[], RgbImage]) -> ImageEmbedding:
        def make() -> ImageEmbedding:
            pixels = image()
            return self._shared.with_room(lambda: self._engine.embed(pixels))

        if not self._is_short:
            return make()
        key = EmbeddingKey(self._frames.frame_hash(frame_idx), self._engine.model_id, self._engine.preprocessing, "upright")
        return self._shared.get_or_make(key, make)[0]
