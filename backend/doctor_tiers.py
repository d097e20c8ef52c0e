"""What `sam2-backend doctor` says of the folder and the bucket that embeddings outlive the workers in."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator

from backend.doctor import Finding
from sam2_backend.embedding_bucket import EmbeddingBucket
from sam2_backend.embedding_disk import EmbeddingFolder
from sam2_backend.embedding_tier import Store
from sam2_backend.settings import GIB, Settings

_PROBE, _DATA = "doctor", b"written by sam2-backend doctor"
_NEVER_FULL = 1 << 62


def tiers(settings: Settings) -> Iterator[Finding]:
    """Write, read and delete in each that the settings name; nothing where no worker can run.

    Raises:
        SettingsError: the bucket cannot be one.
    """
    if importlib.util.find_spec("torch") is None:
        return
    if settings.disk_cache_bytes and (settings.embedding_dir or os.access(settings.data_dir, os.W_OK)):  # else the data folder is to blame
        yield _folder(settings)
    if settings.embedding_bucket:
        yield _bucket(settings)


def _folder(settings: Settings) -> Finding:
    path = settings.embedding_folder
    folder = EmbeddingFolder(path, _NEVER_FULL)  # so that trying puts nothing out
    try:
        _try(folder)
        n_files, used_bytes = folder.count()
    except OSError as error:
        why = error.strerror or error
        return Finding("wrong", "embeddings on disk", f"{path} cannot be used ({why}). Correct SAM2_EMBEDDING_DIR or SAM2_DATA_DIR.")
    room_bytes = used_bytes + shutil.disk_usage(path).free
    held = f"{n_files} images, {used_bytes / GIB:.1f} of {settings.disk_cache_bytes / GIB:.1f} GiB at {path}"
    if room_bytes < settings.disk_cache_bytes:
        advice = f"{held}; the disk has room for {room_bytes / GIB:.1f} GiB in all. Free some, or lower SAM2_DISK_CACHE_BYTES."
        return Finding("wrong", "embeddings on disk", advice)
    return Finding("ok", "embeddings on disk", held)


def _bucket(settings: Settings) -> Finding:
    name, bucket = "embeddings in the bucket", EmbeddingBucket(settings.embedding_bucket)
    try:
        _try(bucket)
    except Exception as error:  # boto3's errors have no common ancestor
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        needs = "It needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket, and AWS_ENDPOINT_URL_S3 where it is not AWS."
        return Finding("wrong", name, f"{settings.embedding_bucket} cannot be used ({why}). {needs}")
    return Finding("ok", name, f"{settings.embedding_bucket} can be read and written")


def _try(store: Store) -> None:
    """Miss, write, read, delete.

    Raises:
        Exception: one of them failed.
    """
    steps: list[tuple[Callable[[], object], object]] = [
        (lambda: store.forget(_PROBE), None),
        (lambda: store.get(_PROBE), None),
        (lambda: store.put(_PROBE, _DATA), None),
        (lambda: store.get(_PROBE), _DATA),
        (lambda: store.forget(_PROBE), None),
    ]
    for step, expected in steps:
        if step() != expected:
            raise OSError("what was written is not what is read")
