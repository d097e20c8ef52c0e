"""The published checkpoints: file, address, size, digest, licence. Standard library only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_CDN = "https://dl.fbaipublicfiles.com/segment_anything_2"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One published checkpoint.

    Attributes:
        file: Its name in the checkpoints folder.
        url: Where Meta publishes it.
        n_bytes: Its size.
        sha256: Its digest, hexadecimal.
    """

    file: str
    url: str
    n_bytes: int
    sha256: str
    licence: str = "Apache-2.0"


def _spec(family: str, size: str, n_bytes: int, sha256: str) -> ModelSpec:
    file = f"{family}_hiera_{size}.pt"
    return ModelSpec(file, f"{_CDN}/{'092824' if family == 'sam2.1' else '072824'}/{file}", n_bytes, sha256)


# Digests as in the LFS pointers of Meta's own repositories on Hugging Face, facebook/sam2-hiera-* and facebook/sam2.1-hiera-*.
_SPECS = (
    _spec("sam2.1", "tiny", 156_008_466, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
    _spec("sam2.1", "small", 184_416_285, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
    _spec("sam2.1", "base_plus", 323_606_802, "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
    _spec("sam2.1", "large", 898_083_611, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
    _spec("sam2", "tiny", 155_906_050, "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125"),
    _spec("sam2", "small", 184_309_650, "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"),
    _spec("sam2", "base_plus", 323_493_298, "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071"),
    _spec("sam2", "large", 897_952_466, "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"),
)

MODELS: dict[str, ModelSpec] = {Path(spec.file).stem: spec for spec in _SPECS}
"""By name: the newer family first, and in it the smaller first."""


def sha256_of(path: Path) -> str:
    """The hexadecimal digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def how_to_get(name: str, folder: Path) -> str:
    """The sentence that tells a person how to get a published checkpoint, with and without a network here."""
    spec = MODELS[name]
    return f"Run `sam2-backend checkpoints fetch {name}`, or download {spec.url} elsewhere and put the file into {folder}."
