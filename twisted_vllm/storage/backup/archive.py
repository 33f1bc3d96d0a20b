"""The form of a backup: a compressed tar of plain files, which any tar can unpack.

Reading takes nothing for granted: only plain files are read, each header is one block, and no more is taken into memory
than a piece. What `tarfile` would follow (links, devices, long names, sparse files) is refused.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, BinaryIO

from twisted_vllm.storage.backup.manifest import BackupError

#: bytes that are read and written at once
PIECE = 1 << 20
#: the block of a tar
_BLOCK = tarfile.BLOCKSIZE
#: files that are too large for the size of a plain header
_LARGE = 8**11
#: compression: quick, as the gateway has the same processor
_GZIP_LEVEL, _ZSTD_LEVEL = 2, 3
#: the largest window of zstd that is unpacked: 128 MiB
_WINDOW_LOG = 27

_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_NEEDS_ZSTD = "needs Python 3.14 or the package backports.zstd (pip install 'twisted-vllm[zstd]')"
SUFFIXES = (".tar.zst", ".tar.gz")


def _zstd() -> Any:
    """Return the module that reads and writes zstd; None if there is none."""
    # what is installed decides; mypy runs for Python 3.11, which has neither
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def check_suffix(path: Path) -> None:
    """Check that an archive of this name can be written.

    Raises:
        BackupError: the name says no known compression, or what it needs is not installed.
    """
    if not path.name.endswith(SUFFIXES):
        raise BackupError(f"{path} ends neither in .tar.zst nor in .tar.gz: the name says how to compress")
    if path.name.endswith(".zst") and _zstd() is None:
        raise BackupError(f"A backup {path.name} {_NEEDS_ZSTD}; or name a .tar.gz")


class ArchiveWriter:
    """Writes the members of an archive, one after the other."""

    def __init__(self, file: BinaryIO, name: str, mtime: int) -> None:
        """Begin.

        Args:
            file: where to write.
            name: of the archive; its end says the compression.
            mtime: the time of all members, in Unix seconds.
        """
        self._mtime = mtime
        self._stream: Any
        if name.endswith(".zst"):
            zstd = _zstd()
            self._stream = zstd.ZstdFile(file, "wb", level=_ZSTD_LEVEL)
        else:
            self._stream = gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime)

    def add(self, name: str, size: int, pieces: Iterator[bytes]) -> None:
        """Write a member.

        Raises:
            BackupError: the pieces are not as many bytes as promised.
            OSError: it cannot be written.
        """
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = size, self._mtime, 0o600
        self._stream.write(info.tobuf(tarfile.GNU_FORMAT if size >= _LARGE else tarfile.USTAR_FORMAT))
        left = size
        for piece in pieces:
            self._stream.write(piece)
            left -= len(piece)
        if left:
            raise BackupError(f"{name} changed its size while it was copied")
        self._stream.write(bytes(-size % _BLOCK))

    def close(self) -> None:
        """Write the end.

        Raises:
            OSError: it cannot be written.
        """
        self._stream.write(bytes(2 * _BLOCK))
        self._stream.close()


class Member:
    """A member of an archive that is being read.

    Attributes:
        name: its name.
        size: its bytes.
    """

    def __init__(self, name: str, size: int, stream: IO[bytes]) -> None:
        self.name = name
        self.size = size
        self._stream = stream
        self._left = size

    def pieces(self) -> Iterator[bytes]:
        """Yield what it holds.

        Raises:
            BackupError: the archive ends before.
        """
        while self._left:
            piece = self._stream.read(min(PIECE, self._left))
            if not piece:
                raise BackupError(f"it ends in the middle of {self.name}: it was cut off")
            self._left -= len(piece)
            yield piece

    def all(self, most: int) -> bytes:
        """Return all that it holds, if that is at most so many bytes.

        Raises:
            BackupError: it is more, or the archive ends before.
        """
        if self.size > most:
            raise BackupError(f"its {self.name} is {self.size:,} bytes large, and may be {most:,} at most")
        return b"".join(self.pieces())

    def skip_padding(self) -> None:
        """Read on to the next header."""
        if self._left:
            raise BackupError(f"{self.name} was not read to its end")
        _exactly(self._stream, -self.size % _BLOCK)


@contextmanager
def opened(path: Path) -> Iterator[Iterator[Member]]:
    """Open an archive, and yield its members one after the other; each must be read before the next.

    Raises:
        BackupError: it is not one, is damaged or cut off, or holds what no backup does. The message does not name it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        stream: Any
        faults: tuple[type[Exception], ...]
        if magic[:2] == _GZIP_MAGIC:
            stream, faults = gzip.GzipFile(fileobj=file), (EOFError, zlib.error, gzip.BadGzipFile)
        elif magic == _ZSTD_MAGIC:
            zstd = _zstd()
            if zstd is None:
                raise BackupError(f"to read it {_NEEDS_ZSTD}")
            options = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
            stream, faults = zstd.ZstdFile(file, "rb", options=options), (EOFError, zstd.ZstdError)
        else:
            raise BackupError("it is not a backup: it is compressed with neither zstd nor gzip")
        try:
            with stream:
                yield _members(stream)
        except faults as error:
            if isinstance(error, EOFError):
                raise BackupError("it is cut off") from None
            raise BackupError(f"it is damaged ({error})") from None


def _members(stream: IO[bytes]) -> Iterator[Member]:
    while True:
        block = _exactly(stream, _BLOCK)
        if not any(block):
            if any(_exactly(stream, _BLOCK)) or stream.read(1):
                raise BackupError("something follows its end")
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError):
            raise BackupError("it is damaged, or not a tar") from None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.linkname or info.name.endswith("/"):
            raise BackupError(f"{info.name[:100]!r} in it is not a plain file, and a backup has nothing else")
        if info.size < 0:
            raise BackupError(f"{info.name[:100]!r} in it has a size below 0")
        member = Member(info.name, info.size, stream)
        yield member
        member.skip_padding()


def _exactly(stream: IO[bytes], size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = stream.read(size - len(found))
        if not more:
            raise BackupError("it is cut off")
        found += more
    return found
