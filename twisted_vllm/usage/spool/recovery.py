"""Takes over the segments of processes that have ended, and moves their rows to the database."""

from __future__ import annotations

from pathlib import Path

from twisted.logger import Logger

from twisted_vllm.usage.spool.format import NewerFormat, read_lines
from twisted_vllm.usage.spool.queue import Batch
from twisted_vllm.usage.spool.segments import Claim, claim_orphans


class OrphanRecovery:
    """The orphaned segments. It belongs to the writer's thread, except `bytes_left`.

    Attributes:
        bytes_left: how many bytes are to be moved, as of the last `claim`.
    """

    _log = Logger()

    def __init__(self, directory: Path) -> None:
        """Set up; nothing is read before `claim`."""
        self.bytes_left = 0
        self._directory = directory
        self._claims: list[Claim] = []
        #: the segments of the first claim
        self._paths: list[Path] = []
        #: of the first segment: how far it was read, and its size, in bytes
        self._read_to = self._size = 0
        #: names with segments that this version cannot read
        self._skipped: set[str] = set()

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
            if not self._paths:
                self._paths = paths
            self._log.info("Taking over {files} files of the ledger's spool from another run", files=len(paths))

    def next_batch(self, max_rows: int) -> Batch | None:
        """Return the next rows; None without any. Acknowledge them before you ask for more."""
        while self._claims:
            if not self._paths:
                self._next_claim()
                continue
            path = self._paths[0]
            try:
                self._size = path.stat().st_size
                lines = read_lines(path, self._read_to, self._size, max_rows)
            except NewerFormat as error:
                self._log.critical(
                    "{path} has the format {version} of a newer version: it is left for that version",
                    path=str(path),
                    version=error.args[0],
                )
                self._skip()
                continue
            except OSError as error:
                self._log.critical("{path} cannot be read: {reason}", path=str(path), reason=error.strerror)
                self._skip()
                continue
            self._read_to = lines.end
            if lines.rows or lines.damaged:
                return Batch(lines.rows, lines.damaged, segment=0, end=lines.end, own=False)
            if lines.end >= self._size:
                self._remove_segment()
        return None

    def acknowledge(self, batch: Batch) -> None:
        """Note that the database has a batch. A segment that was read to its end is removed."""
        if batch.end >= self._size:
            self._remove_segment()

    def close(self) -> None:
        """Release what was not moved."""
        self._paths = []
        while self._claims:
            self._claims.pop().release()

    def _remove_segment(self) -> None:
        # It may be gone already: its process may have acknowledged the rows while it ended.
        self._paths[0].unlink(missing_ok=True)
        self.bytes_left -= self._size
        self._next_segment()

    def _skip(self) -> None:
        self._skipped.add(self._claims[0].name)
        self._next_segment()

    def _next_segment(self) -> None:
        del self._paths[0]
        self._read_to = 0

    def _next_claim(self) -> None:
        self._claims.pop(0).release()
        self._paths = self._claims[0].segments() if self._claims else []
        if not self._claims:
            self.bytes_left = 0
