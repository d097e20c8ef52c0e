"""Files of this machine that tasks may name: below Label Studio's local files root, and nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from sam2_backend.errors import MediaRefusedError, MediaUnreachableError


def open_local_file(uri: str, root_text: str, name: str) -> BinaryIO:
    """Open a regular file for reading; never waits, as opening a named pipe would.

    Args:
        uri: `file:///…`.
        root_text: The local files root; empty: no file is opened.
        name: What messages call the file.

    Raises:
        MediaRefusedError: it does not lie below the root, links resolved, or is not a regular file.
        MediaUnreachableError: it cannot be read.
    """
    path = _path_below(uri, root_text, name)
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  handed to the caller; pathlib takes no opener
    except OSError as error:
        raise unreadable(name, error) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise MediaRefusedError(f"{name} is not a regular file.")
    return file


def unreadable(name: str, error: OSError) -> MediaUnreachableError:
    """The answer to a local file that the system does not let us read."""
    return MediaUnreachableError(f"{name} cannot be read: {error.strerror}. Check the file and its permissions.")


def _path_below(uri: str, root_text: str, name: str) -> Path:
    try:
        parts = urlsplit(uri)
        root, path = Path(root_text).resolve(), Path(unquote(parts.path)).resolve()
    except (ValueError, OSError, RuntimeError):
        raise MediaRefusedError("The address of a local file is malformed. Check the address in the task.") from None
    if not root_text or parts.netloc not in {"", "localhost"} or not path.is_relative_to(root):
        raise MediaRefusedError(
            f"{name} does not lie below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT ({root_text or 'not set'}), and no other file is read."
        )
    return path


def _open_without_waiting(path: str, flags: int) -> int:
    # The path was resolved, so its end is no link unless it was swapped; opening a named pipe would wait for ever.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
