"""Fetching a published checkpoint: resumed, verified, and only then given its name."""

from __future__ import annotations

import fcntl
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from sam2_backend.checkpoints.catalog import MODELS, ModelSpec, sha256_of
from sam2_backend.errors import BadCheckpointError

#: Called with (bytes so far, bytes in all).
Progress = Callable[[int, int], None]

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30
#: A connection that breaks off is taken up again this often, as long as each brought something.
_RESUMES = 20


class _BrokeOffError(Exception):
    """The connection ended before the file did."""


def fetch(name: str, folder: Path, on_progress: Progress = lambda _done, _total: None) -> Path:
    """Download a published checkpoint unless it is there already. What an earlier run left in FILE.part is not fetched again.

    Raises:
        BadCheckpointError: there is no such name, the network or the server says no, or the digest is wrong. Names the address and
            the folder to put the file into.
    """
    if name not in MODELS:
        raise BadCheckpointError(f"There is no published checkpoint {name}. There are: {', '.join(MODELS)}.")
    spec, target = MODELS[name], folder / MODELS[name].file
    if target.is_file() and sha256_of(target) == spec.sha256:
        on_progress(spec.n_bytes, spec.n_bytes)
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            _lock(file, spec)
            _download(spec, file, on_progress)
            file.flush()
            _verify(spec, part)
            part.replace(target)
    except (OSError, http.client.HTTPException, _BrokeOffError) as error:
        if part.is_file() and part.stat().st_size == 0:
            part.unlink()
        raise BadCheckpointError(f"{spec.url} cannot be downloaded: {_reason(error)}. {_by_hand(spec, folder)}") from error
    return target


def _by_hand(spec: ModelSpec, folder: Path) -> str:
    return f"Run it again to resume, or download that address elsewhere and put {spec.file} into {folder}."


def _lock(file: BinaryIO, spec: ModelSpec) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadCheckpointError(f"Another process is fetching {spec.file}. Wait for it.") from error


def _download(spec: ModelSpec, file: BinaryIO, on_progress: Progress) -> None:
    for _ in range(_RESUMES):
        before = file.tell()
        if before >= spec.n_bytes:
            return
        try:
            _receive(spec, file, on_progress)
        except (http.client.IncompleteRead, ConnectionResetError, TimeoutError):
            if file.tell() == before:
                raise
        if file.tell() == before:
            break
    if file.tell() < spec.n_bytes:
        raise _BrokeOffError(f"the connection broke off after {file.tell()} of {spec.n_bytes} bytes")


def _receive(spec: ModelSpec, file: BinaryIO, on_progress: Progress) -> None:
    """Append what is missing, as far as one connection brings it; start over where the server cannot resume."""
    request = urllib.request.Request(spec.url, headers={"Range": f"bytes={file.tell()}-", "User-Agent": "sam2-backend"})  # noqa: S310  our own table
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310  as above
        if not _resumes_at(response, file.tell()):
            file.truncate(0)
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            on_progress(file.tell(), spec.n_bytes)
            if file.tell() > spec.n_bytes:
                break


def _resumes_at(response: http.client.HTTPResponse, start: int) -> bool:
    content_range = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == HTTPStatus.PARTIAL_CONTENT and content_range is not None and int(content_range[1]) == start


def _verify(spec: ModelSpec, part: Path) -> None:
    digest = sha256_of(part)
    if digest != spec.sha256:
        part.unlink()
        raise BadCheckpointError(
            f"{spec.url} brought other bytes than were published: their sha256 is {digest}, not {spec.sha256}. They were deleted; a proxy may "
            f"answer in its place. {_by_hand(spec, part.parent)}"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it is the response, and holds its connection
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
