"""The files that pages load: read once, named by their content, and sent compressed.

A file's address holds a part of its hash, so a browser keeps it for a year and asks for a changed one at once.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import PurePosixPath

import attrs

#: the types of the files that there are
_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".txt": b"text/plain; charset=utf-8",
}
_HASH_DIGITS = 12


@attrs.frozen
class Asset:
    """A file.

    Attributes:
        data: what it holds.
        compressed: the same with gzip; None where that is not smaller.
        media_type: its type.
        version: a part of its hash.
    """

    data: bytes = attrs.field(repr=False)
    compressed: bytes | None = attrs.field(repr=False)
    media_type: bytes
    version: str


@cache
def read_assets() -> Mapping[str, Asset]:
    """Return all files by name, such as ``vendor/htmx.min.js``. The first call reads them, in any thread."""
    found: dict[str, Asset] = {}
    root = files("twisted_vllm.admin.web") / "assets"
    for folder, prefix in ((root, ""), (root / "vendor", "vendor/")):
        for each in folder.iterdir():
            media_type = _TYPES.get(PurePosixPath(each.name).suffix)
            if media_type is not None and each.is_file():
                found[prefix + each.name] = _asset(each.read_bytes(), media_type)
    return found


def _asset(data: bytes, media_type: bytes) -> Asset:
    smaller = gzip.compress(data, 9, mtime=0)
    return Asset(
        data=data,
        compressed=smaller if len(smaller) < len(data) else None,
        media_type=media_type,
        version=sha256(data).hexdigest()[:_HASH_DIGITS],
    )
