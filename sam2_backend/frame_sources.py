"""Frames of a video, an image sequence or a medical volume behind one interface."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Protocol, Self

from sam2_backend.images import RgbImage
from sam2_backend.media import MediaStore
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource


class Frames(Protocol):
    """Frames in order of presentation, numbered from 0 by `frame_idx`; `grid_idx` numbers the places of the source's grid.

    A context manager: at its end files are closed and threads are gone. Used by one thread.

    Attributes:
        size_hw: Height and width of every frame as shown, rotation applied.
        n_frames: Frames in the file.
        n_grid: Places on the grid.
        image_hash: Digest of the media's bytes.
    """

    size_hw: tuple[int, int]
    n_frames: int
    n_grid: int
    image_hash: str

    def frame_of_grid(self, grid_idx: int) -> int:
        """The frame that a viewer shows at a place.

        Raises:
            VideoFrameError: there is no such place.
        """

    def grid_of_frame(self, frame_idx: int) -> range:
        """The places that show a frame; may be empty.

        Raises:
            VideoFrameError: there is no such frame.
        """

    def frame_hash(self, frame_idx: int) -> str:
        """Names the pixels of a frame: equal only for the same frame of the same bytes."""

    def read(self, frame_idx: int) -> RgbImage:
        """One frame, exactly: (H, W, 3) uint8 RGB, upright.

        Raises:
            VideoError, MediaError: it cannot be decoded, or there is no such frame.
        """

    def stream(self, first: int, last: int, *, reverse: bool = False) -> Generator[tuple[int, RgbImage], None, None]:
        """(frame_idx, frame) from `first` to `last`, both included; `reverse`: from `last` down to `first`.

        A few frames are decoded ahead in a thread, which ends with the generator: exhausted, closed or failed.
        Memory does not grow with the length of the range.

        Raises:
            VideoError, MediaError: as for `read`.
        """

    def close(self) -> None:
        """End the streams that run, and let go of the files."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_frames(source: FrameSource, store: MediaStore, settings: Settings) -> Frames:
    """Open what a source names; fetches it where it is not here yet. The reader of its kind is imported only then.

    Raises:
        VideoError: there is no video, or none that can be decoded; it is too large; the framerate is absurd.
        MediaError: it cannot be had.
    """
    if source.kind == "video":
        from sam2_backend.video import open_video

        return open_video(source, store, settings)
    if source.kind == "pages":
        from sam2_backend.pages import open_pages

        return open_pages(source, store, settings)
    from sam2_backend.volumes import open_volume

    return open_volume(source, store, settings)
