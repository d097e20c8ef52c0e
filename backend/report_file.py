"""A file that is written beside its place and takes it when it is whole; one that was not finished leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from sam2_backend.errors import Sam2BackendError


class ReportError(Sam2BackendError):
    """A report cannot be written."""

    code = "report_failed"


class ReportFile:
    """One file, to be used in a `with` block.

    Raises:
        ReportError: it cannot be written, here and in every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._part = tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent, delete=False)  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise self._failed(error) from error

    def write(self, data: bytes) -> None:
        """Add bytes."""
        try:
            self._part.write(data)
        except OSError as error:
            raise self._failed(error) from error

    def finish(self) -> None:
        """What was written is whole: it takes its place."""
        try:
            self._part.close()
            Path(self._part.name).chmod(0o644)
            Path(self._part.name).replace(self._path)
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._part.close()
        Path(self._part.name).unlink(missing_ok=True)

    def _failed(self, error: OSError) -> ReportError:
        return ReportError(f"{self._path} cannot be written: {error.strerror or error}. Name a file in a folder that exists and has room.")
