"""What other processes left in the spool's directory, and this one moves to the database in their place."""

from __future__ import annotations

from pathlib import Path

from twisted.logger import Logger

from twisted_vllm.usage.spool.claims import Claim, claim_abandoned
from twisted_vllm.usage.spool.lines import NewerFormat, read_lines
from twisted_vllm.usage.spool.queue import Batch


class OrphanRecovery:
    """The segments of processes that are gone. It belongs to the writer's thread, but for `bytes_held`.

    Attributes:
        bytes_held: how many bytes there are to move, as of the last look.
    """

    _log = Logger()

    def __init__(self, directory: Path) -> None:
        """Prepare; nothing is read before `look`."""
        self.bytes_held = 0
        self._directory = directory
        self._claims: list[Claim] = []
        self._paths: list[Path] = []
        #: of the first path: how far it was read, and its size, in bytes
        self._read_to = self._size = 0
        #: names of files that this version cannot read: they are left to another
        self._left: set[str] = set()

    def look(self) -> None:
        """Take over what is left by a process that has ended.

        Raises:
            OSError: the directory cannot be read.
        """
        for taken in claim_abandoned(self._directory, self._left):
            paths = taken.segments()
            if not paths:
                taken.release()
                continue
            self._claims.append(taken)
            self.bytes_held += sum(path.stat().st_size for path in paths)
            if not self._paths:
                self._paths = paths
            self._log.info("Taking over {files} files of the ledger's spool from another run", files=len(paths))

    def take(self, max_rows: int) -> Batch | None:
        """Return the next rows; None where there are none. What is taken must be committed before more is taken."""
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
                    "{path} was written by a newer version, in the format {version}: it is left for that",
                    path=str(path),
                    version=error.args[0],
                )
                self._leave()
                continue
            except OSError as error:
                self._log.critical("{path} cannot be read: {reason}", path=str(path), reason=error.strerror)
                self._leave()
                continue
            self._read_to = lines.end
            if lines.rows or lines.damaged:
                return Batch(lines.rows, lines.damaged, segment=0, end=lines.end, own=False)
            if lines.end >= self._size:
                self._finish()
        return None

    def commit(self, batch: Batch) -> None:
        """Note that the database has a batch; a file that was read to its end is removed."""
        if batch.end >= self._size:
            self._finish()

    def _finish(self) -> None:
        # it may be gone already: its process may have been slow to end, and not to commit
        self._paths[0].unlink(missing_ok=True)
        self.bytes_held -= self._size
        self._next_path()

    def _leave(self) -> None:
        self._left.add(self._claims[0].name)
        self._next_path()

    def _next_path(self) -> None:
        del self._paths[0]
        self._read_to = 0

    def _next_claim(self) -> None:
        self._claims.pop(0).release()
        self._paths = self._claims[0].segments() if self._claims else []
        if not self._claims:
            self.bytes_held = 0

    def close(self) -> None:
        """Give up what was not moved."""
        self._paths = []
        while self._claims:
            self._claims.pop().release()
