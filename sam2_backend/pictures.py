"""An image of a dataset on its way through a mode: its size and hash at once, its pixels and embedding when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sam2_backend.clock import Clock
from sam2_backend.embedding import ImageEmbedding
from sam2_backend.embedding_cache import EmbeddingCache, EmbeddingKey
from sam2_backend.engine import Sam2Engine
from sam2_backend.images import Orientation, RgbImage, load_rgb, orientation_for
from sam2_backend.media import MediaFile, MediaStore
from sam2_backend.messages import CacheTier, MediaRef


class Picture:
    """One image as a browser shows it. Used by one thread.

    Attributes:
        image_hash: 40 hex digits of its bytes.
        size_hw: Height and width as shown.
        tier: Where the embedding was found; `none` until it was asked for.
    """

    def __init__(self, file: MediaFile, orientation: Orientation, atelier: Atelier, clock: Clock) -> None:
        self.image_hash = file.image_hash
        self.size_hw = file.info.upright_size_hw if orientation == "upright" else file.info.stored_size_hw
        self.tier: CacheTier = "none"
        self._file, self._orientation, self._atelier, self._clock = file, orientation, atelier, clock
        self._pixels: RgbImage | None = None
        self._embedding: ImageEmbedding | None = None

    def pixels(self) -> RgbImage:
        """(H, W, 3) uint8 RGB; decoded once.

        Raises:
            MediaError: it cannot be decoded.
        """
        if self._pixels is None:
            with self._clock.step("media"):
                self._pixels = load_rgb(self._file.data, self._orientation, self._atelier.max_pixels)
        return self._pixels

    def embedding(self) -> ImageEmbedding:
        """From the worker's cache, or made.

        Raises:
            MediaError: as for `pixels`.
            GpuMemoryError: the device is full, also after its cache tier was emptied.
        """
        if self._embedding is None:
            engine, cache = self._atelier.engine, self._atelier.embeddings
            key = EmbeddingKey(self.image_hash, engine.model_id, engine.preprocessing, self._orientation)
            with self._clock.step("embed"):
                self._embedding, self.tier = cache.get_or_make(key, lambda: cache.with_room(partial(engine.embed, self.pixels())))
        return self._embedding


@dataclass(frozen=True, slots=True)
class Atelier:
    """What pictures are made with: the engine, where images come from, and the cache that clicks use as well."""

    engine: Sam2Engine
    store: MediaStore
    embeddings: EmbeddingCache
    max_pixels: int

    def open(self, media: MediaRef, clock: Clock, shown_size_hw: tuple[int, int] | None = None) -> Picture:
        """Fetch an image; nothing is decoded yet.

        Args:
            shown_size_hw: As somebody saw it; None: as Chromium shows it.

        Raises:
            MediaError: it cannot be had, or is not of that size.
        """
        with clock.step("media"):
            file = self.store.fetch(media)
        return Picture(file, orientation_for(file.info, shown_size_hw), self, clock)
