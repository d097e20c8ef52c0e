"""What an embedding is called outside of memory, and how its file begins.

The name of a file is a digest, so it is short and safe whatever the key holds. The file begins with the whole key, so that one which lies
at a wrong place is not taken for another's. A folder and a bucket hold the same bytes under the same names: one can be copied to the other.
"""

from __future__ import annotations

import hashlib
import struct

MOST_BYTES = 64 << 20
"""No embedding is larger: a network's square of 2,800 pixels. What claims to be is not read."""
_MAGIC = b"S2N1"


def place_of(key: str) -> tuple[str, str]:
    """The directory (two hex digits) and the file that hold the embedding of this key."""
    digest = hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
    return digest[:2], f"{digest}.emb"


def preface_of(key: str) -> bytes:
    """What its file begins with; the embedding's own bytes follow."""
    text = key.encode()
    return _MAGIC + struct.pack("<I", len(text)) + text
