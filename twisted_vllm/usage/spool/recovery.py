"""Takes over the segments of processes that have ended, and moves their rows to the database."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_vllm.usage.interfaces import Position
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.format import VERSION, NewerFormat, encode_rows, header_line, read_lines, version_of
from twisted_vllm.usage.spool.queue import Batch
from twisted_vllm.usage.spool.segments import Claim, claim_orphans, number_of

#: returns which of some rows the database lacks
Missing = Callable[[Sequence[UsageRow]], list[UsageRow]]

#: rows of a segment of the former version to look for at once
_RENEWED_ROWS = 1_000


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
        #: the rows that were read and are not acknowledged
        self._batch: Batch | None = None
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

    @property
    def names(self) -> set[str]:
        """The names that are claimed."""
        return {each.name for each in self._claims}

    def claim(self, own: str = "", followed: Collection[str] = ()) -> None:
        """Claim the segments of processes that have ended.

        Args:
            own: the name of this process.
            followed: names that are read elsewhere.

        Raises:
            OSError: the directory cannot be read.
        """
        for claimed in claim_orphans(self._directory, {*self._skipped, *followed}, own):
            files = self.take(claimed)
            if files:
                self._log.info("Taking over {files} files of the ledger's spool from another run", files=files)

    def take(self, claimed: Claim) -> int:
        """Take the segments of a name over; return how many there are.

        One without any is taken as well: the database may have marks of it.
        """
        self._claims.append(claimed)
        if len(self._claims) == 1:
            self._begin()
        paths = claimed.segments()
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.bytes_left += path.stat().st_size
        return len(paths)

    def next_batch(self, max_rows: int, boundaries: Sequence[Position] = (), missing: Missing = list) -> Batch | None:
        """Return the next rows of `name`; None without any. The same again until they are acknowledged.

        Args:
            max_rows: about how many at most.
            boundaries: positions that no batch may span.
            missing: returns which of some rows the database lacks.

        Raises:
            whatever `missing` raises.
        """
        if self._batch is not None:
            return self._batch
        while self._unread:
            file = self._unread[0]
            try:
                file.size = file.path.stat().st_size
                if version_of(file.path) < VERSION:
                    self._renew(file.path, missing)
                    file.size = file.path.stat().st_size
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
                self._batch = Batch(lines.rows, lines.damaged, segment=file.number, end=lines.end, own=False)
                return self._batch
            if lines.end >= file.size:
                self._next_segment()
        return None

    def acknowledge(self, batch: Batch) -> None:
        """Note that the database has a batch."""
        self._batch = None
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
        self._forget()
        self._claims.pop(0).release()
        if self._claims:
            self._begin()
        else:
            self.bytes_left = 0

    def begin_again(self) -> None:
        """Read the segments of `name` from their beginning again."""
        self._forget()
        if self._claims:
            self._begin()

    def close(self) -> None:
        """Release what was not moved."""
        self._forget()
        while self._claims:
            self._claims.pop().release()
        self.bytes_left = 0

    def _forget(self) -> None:
        self._unread, self._read, self._read_to, self._batch = [], [], 0, None

    def _renew(self, path: Path, missing: Missing) -> None:
        """Write a segment of the former version again, without the rows that were stored and added up together."""
        new = path.with_suffix(".new")
        position, size = 0, path.stat().st_size
        with new.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(header_line())
            while position < size:
                lines = read_lines(path, position, size, _RENEWED_ROWS)
                if lines.end <= position:
                    break
                position = lines.end
                rows = missing(lines.rows) if lines.rows else ()
                file.write((encode_rows(rows) if rows else b"") + b"".join(line + b"\n" for line in lines.damaged))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def _begin(self) -> None:
        self._unread = [_File(number_of(path), path) for path in self._claims[0].segments()]

    def _remove(self, file: _File) -> None:
        file.path.unlink(missing_ok=True)
        self.bytes_left = max(self.bytes_left - file.size, 0)

    def _skip(self) -> None:
        """Leave the rest of a name: what follows a segment that cannot be read would be added up before it."""
        self._skipped.add(self.name)
        self._unread, self._read_to, self._batch = [], 0, None

    def _next_segment(self) -> None:
        self._read.append(self._unread.pop(0))
        self._read_to = 0


@attrs.define
class _File:
    """A segment: its number, its path, and its size in bytes once it was looked at."""

    number: int
    path: Path
    size: int = 0
