"""Reads a backup from its beginning to its end, and finds out whether it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted_vllm.storage.backup.archive import opened
from twisted_vllm.storage.backup.manifest import (
    HEADER,
    MANIFEST,
    MAX_JSON,
    BackupError,
    Manifest,
    check_manifest,
    decode_header,
)

#: takes the pieces of a file that has a name; called with None at its end
Sink = Callable[[bytes | None], Any]


def nowhere(_name: str) -> Sink:
    """Return what takes a file's content and keeps nothing of it."""
    return lambda _piece: None


def check(path: Path, progress: Callable[[int], None]) -> Manifest:
    """Read a backup; return its manifest.

    Args:
        path: the archive.
        progress: called with bytes that were read.

    Raises:
        BackupError: it is not one, or not whole; the message does not name it.
        OSError: it cannot be read.
    """
    return read(path, lambda _header: nowhere, progress)


def read_header(path: Path) -> Manifest:
    """Return what a backup says of itself at its beginning.

    Raises:
        BackupError, OSError: as `check`.
    """
    size = path.stat().st_size
    with opened(path) as members:
        first = next(members, None)
        if first is None or first.name != HEADER:
            raise BackupError("it is not a backup of vllm-passthrough")
        return decode_header(first.all(MAX_JSON), size)


def read(path: Path, begin: Callable[[Manifest], Callable[[str], Sink]], progress: Callable[[int], None]) -> Manifest:
    """Read a backup, and give the content of its files to others; return its manifest.

    Args:
        path: the archive.
        begin: called with the header; returns what returns, for the name of each file, what takes its pieces.
        progress: called with bytes that were read.

    Raises:
        BackupError, OSError: as `check`. What was given so far is not to be trusted.
    """
    size = path.stat().st_size
    with opened(path) as members:
        first = next(members, None)
        if first is None or first.name != HEADER:
            raise BackupError("it is not a backup of vllm-passthrough")
        header = decode_header(first.all(MAX_JSON), size)
        sink_of = begin(header)
        sums = []
        for file in header.files:
            member = next(members, None)
            if member is None or (member.name, member.size) != (file.name, file.bytes):
                raise BackupError(f"{file.name} is not where it should be in it: it was changed or is damaged")
            digest = hashlib.sha256()
            take = sink_of(file.name)
            for piece in member.pieces():
                digest.update(piece)
                take(piece)
                progress(len(piece))
            take(None)
            sums.append(digest.hexdigest())
        last = next(members, None)
        if last is None or last.name != MANIFEST:
            raise BackupError(f"its {MANIFEST} is missing: it was cut off")
        manifest = check_manifest(last.all(MAX_JSON), header, sums)
        if next(members, None) is not None:
            raise BackupError("it has more files than it says")
        return manifest
