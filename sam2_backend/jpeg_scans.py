"""How often a JPEG goes through its image: each scan of a progressive one does, and a file of 400 kB can ask for twenty thousand.

libjpeg spends 1.5 ms on an empty scan of 2.5 megapixels, in a call that no alarm interrupts; cameras and editors write about ten.
"""

from __future__ import annotations

import re

MOST_SCANS = 100
MOST_SEGMENTS = 20_000
"""Of one file; a profile of 16 MB is 255 of them."""

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""Within a scan, where a byte 0xFF of the picture is followed by 0, and restart marks do not end it."""


def goes_on_too_long(jpeg: bytes) -> bool:
    """Whether a JPEG file's first image has more scans or segments than any camera or editor writes.

    Source: ITU-T T.81, annex B; the limit is libjpeg-turbo's advice (`djpeg -maxscans`).
    """
    at, n_scans = 2, 0
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(jpeg, at)
        if found is None or found[1][0] == _END_OF_IMAGE:
            return False
        at = found.end()
        if found[1][0] in _WITHOUT_LENGTH:
            continue
        n_scans += found[1][0] == _START_OF_SCAN
        if n_scans > MOST_SCANS:
            return True
        at += int.from_bytes(jpeg[at : at + 2], "big")
    return True
