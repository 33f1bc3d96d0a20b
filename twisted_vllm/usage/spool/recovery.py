"""Takes over the segments of processes that have ended, and moves their rows to the database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_vllm.usage.interfaces import Position
from twisted_vllm.usage.spool.format import NewerFormat, read_lines, version_of
from twisted_vllm.usage.spool.queue import Batch
from twisted_vllm.usage.spool.segments import Claim, claim_orphans, number_of


class OrphanRecovery:
    """The orphaned segments, name by name. It belongs to the writer's thread, except `bytes_left`.

    Attributes:
        bytes_left: how many bytes are to be moved, as of the last `claim`.
    """

    _log = Logger()

    def __init__(self, directory: Path) -> None:
        """Set up; nothing is read before `claim`."""
        self.bytes_left = 0
        self._directory = directory
        self._claims: list[Claim] = []
        #: of the first claim: the segments that are not read to their ends, and the others that exist
        self._unread: list[_File] = []
        self._read: list[_File] = []
        #: how far the first unread segment was read, in bytes
        self._read_to = 0
        #: names with segments that this version cannot read
        self._skipped: set[str] = set()

    @property
    def name(self) -> str:
        """The name whose segments are being read; empty for none."""
        return self._claims[0].name if self._claims else ""

    @property
    def is_skipped(self) -> bool:
        """Whether segments of `name` cannot be read, and are left."""
        return self.name in self._skipped

    def claim(self) -> None:
        """Claim the segments of processes that have ended.

        Raises:
            OSError: the directory cannot be read.
        """
        for claimed in claim_orphans(self._directory, self._skipped):
            paths = claimed.segments()
            if not paths:
                claimed.release()
                continue
            self._claims.append(claimed)
            self.bytes_left += sum(path.stat().st_size for path in paths)
            if len(self._claims) == 1:
                self._begin()
            self._log.info("Taking over {files} files of the ledger's spool from another run", files=len(paths))

    def next_batch(self, max_rows: int, boundaries: Sequence[Position] = ()) -> Batch | None:
        """Return the next rows of `name`; None without any. Acknowledge them before you ask for more.

        Args:
            max_rows: about how many at most.
            boundaries: positions that no batch may span.
        """
        while self._unread:
            file = self._unread[0]
            try:
                file.size = file.path.stat().st_size
                version = version_of(file.path)
                end = min(
                    (each.offset for each in boundaries if each.segment == file.number and each.offset > self._read_to),
                    default=file.size,
                )
                lines = read_lines(file.path, self._read_to, min(end, file.size), max_rows)
            except NewerFormat as error:
                self._log.critical(
                    "{path} has the format {version} of a newer version: it is left for that version",
                    path=str(file.path),
                    version=error.args[0],
                )
                self._skip()
                continue
            except FileNotFoundError:
                # Its process may have acknowledged the rows while it ended.
                self._next_segment()
                continue
            except OSError as error:
                self._log.critical("{path} cannot be read: {reason}", path=str(file.path), reason=error.strerror)
                self._skip()
                continue
            self._read_to = lines.end
            if lines.rows or lines.damaged:
                return Batch(lines.rows, lines.damaged, segment=file.number, end=lines.end, own=False, version=version)
            if lines.end >= file.size:
                self._next_segment()
        return None

    def acknowledge(self, batch: Batch) -> None:
        """Note that the database has a batch."""
        if self._unread and batch.end >= self._unread[0].size:
            self._next_segment()

    def release(self, position: Position) -> None:
        """Remove the segments that end before a position, or at it: nothing in them is needed any more."""
        while self._read and Position(self._read[0].number, self._read[0].size) <= position:
            self._remove(self._read.pop(0))

    def remove_all(self) -> None:
        """Remove the segments of `name`, which were read to their ends."""
        while self._read:
            self._remove(self._read.pop(0))

    def next_name(self) -> None:
        """Go on with the segments of the next name. What is left of this one stays for another process."""
        self._unread, self._read, self._read_to = [], [], 0
        self._claims.pop(0).release()
        if self._claims:
            self._begin()
        else:
            self.bytes_left = 0

    def close(self) -> None:
        """Release what was not moved."""
        self._unread, self._read, self._read_to = [], [], 0
        while self._claims:
            self._claims.pop().release()
        self.bytes_left = 0

    def _begin(self) -> None:
        self._unread = [_File(number_of(path), path) for path in self._claims[0].segments()]

    def _remove(self, file: _File) -> None:
        file.path.unlink(missing_ok=True)
        self.bytes_left = max(self.bytes_left - file.size, 0)

    def _skip(self) -> None:
        """Leave the rest of a name: what follows a segment that cannot be read would be added up before it."""
        self._skipped.add(self.name)
        self._unread, self._read_to = [], 0

    def _next_segment(self) -> None:
        self._read.append(self._unread.pop(0))
        self._read_to = 0


@attrs.define
class _File:
    """A segment: its number, its path, and its size in bytes once it was looked at."""

    number: int
    path: Path
    size: int = 0
