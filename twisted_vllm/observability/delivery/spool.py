"""A spool on disk for items that wait for their delivery, so that they outlive the process.

It has the files of the ledger's spool (`twisted_vllm.usage.spool.segments`) in a directory of its own: each process
appends to segments under a name of its own, and whoever gets the lock of a name that has ended takes its segments over.
How far a name's items were delivered stands as a note in the lock's file. What was delivered after the last note is
delivered again after a crash. A crash of the machine may lose the newest items.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

import attrs
from twisted.logger import Logger

from twisted_vllm.observability.delivery.interfaces import SpoolFull
from twisted_vllm.usage.spool.format import Lines, NewerFormat, encode_line, header_line, read_part, text_of
from twisted_vllm.usage.spool.segments import Claim, Segment, claim_new, claim_orphans

T = TypeVar("T")

#: the size at which a segment is followed by the next, in bytes; of a small spool an eighth of it
SEGMENT_BYTES = 8 * 1024 * 1024
#: items to read at once
READ_ITEMS = 4096

_NOTE = re.compile(rb"([0-9]{1,9}) ([0-9]{1,18})")
_NUMBER = re.compile(r"-([0-9]+)\.spool$")


class SpoolFile:
    """A file of the spool that has items to deliver.

    Attributes:
        path: its path.
        claim: the right to it.
        end: up to where it holds items, in bytes.
        read_to: up to where its items are in memory, in bytes.
        delivered_to: up to where they were delivered, in bytes.
        segment: what writes to it; None if nothing does.
        skipped: parts without any item that can be read: where each begins and ends, in bytes.
    """

    def __init__(self, path: Path, claim: Claim, end: int, start: int = 0, segment: Segment | None = None) -> None:
        """Set up a file whose items are delivered up to `start`."""
        self.path = path
        self.claim = claim
        self.end = end
        self.read_to = self.delivered_to = start
        self.segment = segment
        self.skipped: dict[int, int] = {}

    def deliver_to(self, end: int) -> None:
        """Note that the items up to `end` were delivered."""
        end = max(end, self.delivered_to)
        while end in self.skipped:
            end = self.skipped.pop(end)
        self.delivered_to = end


@attrs.frozen(eq=False)
class Place:
    """Where an item ends in the spool."""

    file: SpoolFile
    end: int


@attrs.frozen
class Spooled(Generic[T]):
    """An item that was read.

    Attributes:
        item: the item.
        size: its size in the spool, in bytes.
        time: when it was put, in Unix seconds.
        place: where it is.
    """

    item: T
    size: int
    time: float
    place: Place


class DiskSpool(Generic[T]):
    """The spool of one queue. Safe in any thread; `read` belongs to one at a time.

    Attributes:
        unread: how many items of this process are in the spool and were not read.
        damaged: how many lines could not be read.
        failing: why the disk failed the last time; empty if it did not.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        encode: Callable[[T], bytes],
        decode: Callable[[bytes], T],
        *,
        randbytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Set up; nothing is opened before `open`.

        Args:
            directory: where the files are; several processes may share it. It is made with mode 0700, files with 0600.
            max_bytes: the most bytes of this process's files, those that it took over included.
            encode: returns an item as bytes.
            decode: returns the item of such bytes; raises ValueError if there is none.
            randbytes: for the name of this process's files.
        """
        self.unread = 0
        self.damaged = 0
        self.failing = ""
        self._directory = directory
        self._max_bytes = max_bytes
        self._encode = encode
        self._decode = decode
        self._randbytes = randbytes
        self._lock = threading.Lock()
        self._claim: Claim | None = None
        self._number = 0
        self._current: SpoolFile | None = None
        #: in the order of their delivery; the current file is the last one
        self._files: deque[SpoolFile] = deque()
        self._bytes = 0
        #: names with files of a newer version
        self._skipped: set[str] = set()

    @property
    def directory(self) -> Path:
        """Return where the files are."""
        return self._directory

    @property
    def size(self) -> int:
        """Return the size of the files in bytes, what was delivered of them included."""
        return self._bytes

    @property
    def is_read(self) -> bool:
        """Return whether all items that were not delivered are in memory."""
        with self._lock:
            return all(file.read_to >= file.end for file in self._files)

    @property
    def has_finished(self) -> bool:
        """Return whether `clear` would remove a file."""
        with self._lock:
            return self._has_finished()

    def reconfigure(self, max_bytes: int) -> None:
        """Use another size from now on."""
        self._max_bytes = max_bytes

    def open(self) -> None:
        """Claim a name, and take over what processes that have ended left.

        Raises:
            OSError: the directory cannot be written to.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            if self._claim is None:
                self._claim = claim_new(self._directory, self._randbytes)
        self.take_over()

    def take_over(self) -> None:
        """Take over what processes that have ended since left.

        Raises:
            OSError: the directory cannot be read.
        """
        with self._lock:
            if self._claim is None:
                return
            own = {self._claim.name, *(file.claim.name for file in self._files), *self._skipped}
        for claim in claim_orphans(self._directory, own):
            files = _files_of(claim)
            with self._lock:
                is_open = self._claim is not None
                if files and is_open:
                    # the current file stays the last one
                    current = self._files.pop() if self._current is not None else None
                    self._files.extend(files)
                    if current is not None:
                        self._files.append(current)
                    self._bytes += sum(file.end for file in files)
            if not files or not is_open:
                claim.release()

    def append(self, item: T, time: float, *, has_room: bool) -> tuple[Place, int, bool]:
        """Append an item; return its place, its size, and whether the caller must keep it in memory.

        Args:
            item: the item.
            time: when it was put, in Unix seconds.
            has_room: whether the caller can keep it in memory. Else, or if others wait to be read, `read` returns it.

        Raises:
            SpoolFull: it could not be written.
        """
        line = encode_line(b"%d %b" % (int(time * 1000), _escape(self._encode(item))))
        with self._lock:
            if self._bytes + len(line) > self._max_bytes:
                raise SpoolFull
            try:
                file = self._current_file()
                assert file.segment is not None
                file.segment.write(line)
            except OSError as error:
                self.failing = error.strerror or "an error"
                raise SpoolFull from None
            self.failing = ""
            is_kept = has_room and not self.unread and file.read_to == file.end
            file.end = file.segment.end
            self._bytes += len(line)
            if is_kept:
                file.read_to = file.end
            else:
                self.unread += 1
            return Place(file, file.end), len(line), is_kept

    def read(self) -> list[Spooled[T]]:
        """Return the next items that are not in memory, about a MiB; empty without any.

        Only the reader's thread calls it. A file that cannot be read is left where it is.
        """
        while True:
            with self._lock:
                file = next((file for file in self._files if file.read_to < file.end), None)
                if file is None:
                    return []
                start, end = file.read_to, file.end
            try:
                part = read_part(file.path, start, end, READ_ITEMS, self._decode_line)
            except NewerFormat as error:
                self._log.error(
                    "{path} has the format {version} of a newer version", path=str(file.path), version=error
                )
                self._leave(file)
                continue
            except OSError as error:
                self._log.error("{path} cannot be read: {reason}", path=str(file.path), reason=error.strerror)
                self._leave(file)
                continue
            found = _placed(file, start, part)
            with self._lock:
                file.read_to = part.end
                self.damaged += len(part.damaged)
                if file.claim is self._claim:
                    self.unread = max(self.unread - len(found) - len(part.damaged), 0)
                if not found:
                    file.skipped[start] = part.end
                    file.deliver_to(file.delivered_to)
            if part.damaged:
                self._log.error(
                    "{path} is damaged: {count} lines are left out", path=str(file.path), count=len(part.damaged)
                )
            if found:
                return found
            self.clear()

    def delivered(self, places: Iterable[Place]) -> None:
        """Note that items were delivered, or given up."""
        with self._lock:
            for place in places:
                place.file.deliver_to(place.end)
            first = next((file for file in self._files if file.delivered_to < file.end), None)
            if first is None and self._files:
                first = self._files[-1]
            if first is not None:
                # without the note, items are only delivered twice
                with contextlib.suppress(OSError):
                    first.claim.note(b"%d %d" % (_number(first.path), first.delivered_to))

    def clear(self) -> None:
        """Remove files whose items were delivered."""
        gone: list[SpoolFile] = []
        with self._lock:
            while self._has_finished():
                file = self._files.popleft()
                if file is self._current:
                    self._current = None
                if file.segment is not None:
                    file.segment.close()
                self._bytes -= file.end
                gone.append(file)
            names = {file.claim.name for file in self._files}
        for file in gone:
            with contextlib.suppress(OSError):
                file.path.unlink(missing_ok=True)
                if file.claim is not self._claim and file.claim.name not in names:
                    names.add(file.claim.name)
                    file.claim.release()

    def close(self) -> None:
        """Leave what was not delivered to the next process."""
        self.clear()
        with self._lock:
            claims = {file.claim.name: file.claim for file in self._files}
            current, self._current = self._current, None
            self._files.clear()
            self._bytes = self.unread = 0
            if current is not None and current.segment is not None:
                current.segment.close()
                if current.delivered_to >= current.end:
                    current.path.unlink(missing_ok=True)
            if self._claim is not None:
                claims[self._claim.name] = self._claim
                self._claim = None
        for claim in claims.values():
            with contextlib.suppress(OSError):
                claim.release()

    def _current_file(self) -> SpoolFile:
        """Return the file to append to. Call it with the lock held."""
        current = self._current
        if current is not None and self._is_full(current):
            assert current.segment is not None
            current.segment.close()
            current.segment = None
            current = self._current = None
        if current is None:
            if self._claim is None:
                raise SpoolFull
            self._number += 1
            path = self._claim.segment(self._number)
            segment = Segment(self._number, path, 0.0)
            current = self._current = SpoolFile(path, self._claim, segment.end, segment.end, segment)
            self._files.append(current)
            self._bytes += segment.end
        return current

    def _has_finished(self) -> bool:
        first = self._files[0] if self._files else None
        if first is None or first.delivered_to < first.end:
            return False
        return first is not self._current or self._is_full(first)

    def _is_full(self, file: SpoolFile) -> bool:
        return file.end >= min(SEGMENT_BYTES, self._max_bytes // 8)

    def _leave(self, file: SpoolFile) -> None:
        """Forget a file that cannot be read."""
        with self._lock:
            self._files.remove(file)
            self._bytes -= file.end
            self._skipped.add(file.claim.name)
            if file is self._current:
                self._current = None
            if file.claim is not self._claim and all(each.claim is not file.claim for each in self._files):
                # a newer version may take it
                file.claim.release()

    def _decode_line(self, line: bytes) -> list[tuple[T, int, float]] | None:
        text = text_of(line)
        if text is None:
            return None
        when, _, data = text.partition(b" ")
        try:
            return [(self._decode(_unescape(data)), len(line) + 1, int(when) / 1000)]
        except ValueError:
            return None


def _files_of(claim: Claim) -> list[SpoolFile]:
    """Return the files of a name that has ended, as far as they were not delivered."""
    note = _NOTE.fullmatch(claim.read_note())
    number, offset = (int(note[1]), int(note[2])) if note else (0, 0)
    files = []
    for path in claim.segments():
        size = path.stat().st_size
        start = size if _number(path) < number else min(offset, size) if _number(path) == number else 0
        files.append(SpoolFile(path, claim, size, start))
    return files


def _placed(file: SpoolFile, start: int, part: Lines[tuple[T, int, float]]) -> list[Spooled[T]]:
    """Return the items of a part of a file with their places."""
    found: list[Spooled[T]] = []
    end = start or len(header_line())
    for item, size, time in part.rows:
        # behind a damaged line it is not known where a line begins: the part counts as one
        end = start if part.damaged else end + size
        found.append(Spooled(item, size, time, Place(file, end)))
    if found:
        found[-1] = attrs.evolve(found[-1], place=Place(file, part.end))
    return found


def _number(path: Path) -> int:
    found = _NUMBER.search(path.name)
    return int(found[1]) if found else 0


def _escape(data: bytes) -> bytes:
    r"""Return bytes without a newline: ``\`` becomes ``\\``, and a newline ``\n``."""
    if b"\\" in data:
        data = data.replace(b"\\", b"\\\\")
    return data.replace(b"\n", b"\\n") if b"\n" in data else data


def _unescape(data: bytes) -> bytes:
    if b"\\" not in data:
        return data
    return b"\\".join(piece.replace(b"\\n", b"\n") for piece in data.split(b"\\\\"))
