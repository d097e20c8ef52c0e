"""An image that is written out in the task itself: `data:image/png;base64,…` → bytes."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from sam2_backend.errors import MediaTooLargeError, MediaUnreadableError


def is_data_uri(uri: str) -> bool:
    return uri[:5].lower() == "data:"


def data_uri_bytes(uri: str, max_bytes: int) -> bytes:
    """The bytes in a data: address (RFC 2397), base64 or percent-encoded.

    Raises:
        MediaUnreadableError: it has no comma, or what follows is no base64.
        MediaTooLargeError: more than `max_bytes`.
    """
    header, comma, payload = uri.partition(",")
    try:
        if not comma:
            raise binascii.Error
        data = unquote_to_bytes(payload)
        if header.lower().endswith(";base64"):
            data = base64.b64decode(data)
    except (binascii.Error, ValueError) as error:
        raise MediaUnreadableError("The task's image is a data: address that does not decode. Import the image again.") from error
    if len(data) > max_bytes:
        raise MediaTooLargeError(f"The image in the task's data: address is larger than {max_bytes} bytes (SAM2_MEDIA_MAX_BYTES).")
    return data
