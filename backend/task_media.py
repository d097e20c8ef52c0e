"""Where a task's images are: the values in Label Studio's task data → addresses that a process without Label Studio can fetch.

Task data holds raw values: paths of Label Studio's own, cloud storage URIs, plain addresses or `data:` URIs. Nothing is fetched here.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from backend.label_config import ObjectTag
from sam2_backend.errors import MediaUnreadableError, TaskDataError
from sam2_backend.settings import Settings

CLOUD_SCHEMES = ("s3", "gs", "azure-blob")
"""Cloud storages that Label Studio resolves; it alone has their credentials."""

LOCAL_FILES_PATH = "/data/local-files"

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_VARIABLE = re.compile(r"\$([\w\[\].{}]+)")
_PATH_STEP = re.compile(r"[^.\[\]]+")


def image_uri(task: Mapping[str, Any], tag: ObjectTag, item_index: int | None, settings: Settings) -> str:
    """The address of one page of a task.

    Args:
        task: `id` and `data` of it are read.
        tag: The object tag that names the field of `data`.
        item_index: The page, from 0; None: the first.

    Returns:
        `http(s)://…`, `file:///…` (a file below the local files root) or `data:…`, as `data_uri_bytes` reads it.

    Raises:
        TaskDataError: the field is missing or holds no address, the page is not there, or LABEL_STUDIO_URL is needed and not set.
    """
    values, page = _page_values(task, tag), item_index or 0
    if not 0 <= page < len(values):
        raise TaskDataError(f"Page {page + 1} of <{tag.tag} name={tag.name!r}> was asked for; the task has {len(values)}. Reload the task.")
    return _address(values[page], task, tag, settings)


def image_uris(task: Mapping[str, Any], tag: ObjectTag, settings: Settings) -> list[str]:
    """The addresses of all pages of a task; see `image_uri`."""
    return [_address(value, task, tag, settings) for value in _page_values(task, tag)]


def data_uri_bytes(uri: str) -> bytes:
    """What a `data:` URI holds.

    Raises:
        MediaUnreadableError: it is cut off, empty or not base64.
    """
    header, comma, payload = uri.partition(",")
    data = unquote_to_bytes(payload)
    if header.lower().rstrip().endswith(";base64"):
        try:
            data = base64.b64decode(b"".join(data.split()), validate=True)
        except binascii.Error:
            data = b""
    if not comma or not data:
        raise MediaUnreadableError("The task's image is a data: URI that does not decode. Import the image again.")
    return data


def field_value(task: Mapping[str, Any], path: str, tag: ObjectTag) -> Any:
    """What a field of the task's data holds, for an attribute `$path` of an object tag.

    Raises:
        TaskDataError: the task has no data, or none of that name.
    """
    return _field(_data(task), path, tag)


def _data(task: Mapping[str, Any]) -> Mapping[str, Any]:
    data = task.get("data")
    if not isinstance(data, Mapping):
        raise TaskDataError("The task has no data. Send Label Studio's task, with id and data.")
    return data


def _page_values(task: Mapping[str, Any], tag: ObjectTag) -> list[Any]:
    data = _data(task)
    if tag.value_list:
        pages = _field(data, tag.value_list, tag)
        pages = [pages] if isinstance(pages, str) else pages
        if not isinstance(pages, list) or not pages:
            raise TaskDataError(f"data[{tag.value_list!r}] of the task must be a list of addresses, for <{tag.tag} name={tag.name!r}>.")
        return pages
    if tag.value:
        return [_field(data, tag.value, tag)]
    filled: str = _VARIABLE.sub(lambda match: str(_field(data, match[1], tag)), tag.template)
    return [filled]


def _field(data: Mapping[str, Any], path: str, tag: ObjectTag) -> Any:
    """A field of the task's data: its name, else a path into it ("photo.urls[0]"), as the editor reads it."""
    found: Any = data
    for step in [path] if path in data else _PATH_STEP.findall(path):
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and len(step) < 10 and int(step) < len(found):
            found = found[int(step)]
        else:
            raise TaskDataError(f"The task's data has no {path!r}, which <{tag.tag} name={tag.name!r}> of the labeling config names.")
    return found


def _address(value: Any, task: Mapping[str, Any], tag: ObjectTag, settings: Settings) -> str:
    if not isinstance(value, str) or not value.strip():
        kind = "empty" if isinstance(value, str) else f"of type {type(value).__name__}"
        hint = " Use valueList for several pages." if isinstance(value, list) else ""
        raise TaskDataError(f"The task's value for <{tag.tag} name={tag.name!r}> is {kind}; it must be an address.{hint}")
    text: str = value.strip()
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if scheme in {"http", "https", "data"}:
        return text
    if scheme in CLOUD_SCHEMES:
        return _resolved_by_label_studio(text, task, settings)
    if scheme or not text.startswith(("/", "upload/")):
        known = ", ".join(f"{name}://" for name in ("http", "https", *CLOUD_SCHEMES))
        raise TaskDataError(
            f"The task's value {_shown(text)} is no address that can be fetched: {known}, data: or a path of Label Studio's."
        )
    return _of_label_studio(text, settings)


def _resolved_by_label_studio(uri: str, task: Mapping[str, Any], settings: Settings) -> str:
    """Label Studio redirects to a presigned address, or hands the bytes through."""
    task_id = task.get("id")
    if isinstance(task_id, bool) or not isinstance(task_id, int):
        raise TaskDataError(f"The task's image {_shown(uri)} is in cloud storage, which needs the task's id. Send it.")
    encoded = base64.urlsafe_b64encode(uri.encode("utf-8", "replace")).decode("ascii")
    return f"{_label_studio_url(uri, settings)}/tasks/{task_id}/resolve/?fileuri={encoded}"


def _of_label_studio(value: str, settings: Settings) -> str:
    """A path of Label Studio's, with or without the sub-path that it is served under."""
    if value.startswith("//"):
        scheme, found, _ = settings.label_studio_url.strip().partition("://")
        return f"{scheme if found else 'https'}:{value}"
    _, _, sub_path = settings.label_studio_url.strip().rstrip("/").partition("://")[2].partition("/")
    path = "/" + value.removeprefix(f"/{sub_path}/" if sub_path else "/").lstrip("/")
    if path.startswith("/upload/"):
        path = "/data" + path
    on_disk = _local_file(path, settings)
    return on_disk or _label_studio_url(value, settings) + path


def _local_file(path: str, settings: Settings) -> str:
    """`file:///…` of a local-files path that this machine can read from disk itself; else ""."""
    parts = urlsplit(path)
    names = parse_qs(parts.query).get("d")
    if not settings.local_files_root or parts.path.rstrip("/") != LOCAL_FILES_PATH or not names:
        return ""
    try:
        root = Path(settings.local_files_root).expanduser().resolve()
        file = (root / posixpath.normpath(names[-1]).lstrip("/")).resolve()
        # With "/" for a root every readable file would be an image of somebody's task.
        is_ours = root != Path(root.anchor) and file.is_relative_to(root) and file.is_file()
    except (OSError, ValueError, RuntimeError):
        return ""
    return file.as_uri() if is_ours else ""


def _label_studio_url(value: str, settings: Settings) -> str:
    url = settings.label_studio_url.strip().rstrip("/")
    if not url:
        raise TaskDataError(f"The task's image {_shown(value)} is in Label Studio. Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY.")
    if not url.lower().startswith(("http://", "https://")):
        raise TaskDataError("LABEL_STUDIO_URL must begin with http:// or https://.")
    return url


def _shown(value: str) -> str:
    """An address in an error: shortened, and without its query, which may hold a signature."""
    return repr(value.partition("?")[0][:80])
