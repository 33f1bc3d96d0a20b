"""Files of what is not charged yet, so that it outlives the process: one small file for each.

They stand beside the spool's segments, in a directory of their own. As there, a process holds the lock of its name
until it ends; another that gets the lock takes over what is left. A crash of the machine may lose the newest files.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger

from twisted_vllm.usage.spool.format import encode_line, text_of
from twisted_vllm.usage.spool.segments import Claim, claim, claim_new

_LOCK = re.compile(r"([0-9a-z]+)\.lock")
_FILE = re.compile(r"([0-9a-z]+)-([0-9A-Za-z_-]+)\.pending")


class PendingFiles:
    """The files of one process. A failing disk is logged, and the process goes on without its files."""

    _log = Logger()

    def __init__(self, directory: Path, randbytes: Callable[[int], bytes] = os.urandom) -> None:
        """Set up; the directory is made with the first file.

        Args:
            directory: where the files are; several processes may share it.
            randbytes: for the name of this process's files.
        """
        self._directory = directory
        self._randbytes = randbytes
        self._claim: Claim | None = None

    def save(self, name: str, content: bytes) -> None:
        """Write a file.

        Args:
            name: letters, digits, underscores and hyphens.
            content: JSON on one line.
        """
        try:
            path = self._path(name)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                line = memoryview(encode_line(content))
                while line:
                    line = line[os.write(descriptor, line) :]
            finally:
                os.close(descriptor)
        except OSError as error:
            self._log.error(
                "{directory} cannot be written: {reason}",
                directory=self._directory,
                reason=error.strerror,
                once_a_second=True,
            )

    def remove(self, name: str) -> None:
        """Remove a file."""
        if self._claim is not None:
            with contextlib.suppress(OSError):
                self._path(name).unlink()

    def take_over(self) -> list[tuple[str, bytes]]:
        """Make the files of processes that have ended this process's own; return their names and contents."""
        try:
            names = os.listdir(self._directory)
        except OSError:
            return []
        owners: dict[str, list[str]] = {}
        for entry in sorted(names):
            found = _FILE.fullmatch(entry) or _LOCK.fullmatch(entry)
            if found is not None and (self._claim is None or found[1] != self._claim.name):
                # the lock of a process without files is removed
                owners.setdefault(found[1], []).extend(found.groups()[1:])
        taken: list[tuple[str, bytes]] = []
        for owner, names in owners.items():
            try:
                claimed = claim(self._directory, owner)
                if claimed is None:
                    continue
                for name in names:
                    content = self._take(self._directory / f"{owner}-{name}.pending", name)
                    if content is not None:
                        taken.append((name, content))
                claimed.release()
            except OSError as error:
                self._log.error(
                    "{directory} cannot be read: {reason}", directory=self._directory, reason=error.strerror
                )
        return taken

    def close(self) -> None:
        """Leave the files to another process."""
        if self._claim is not None:
            with contextlib.suppress(OSError):
                self._claim.release()
            self._claim = None

    def _take(self, former: Path, name: str) -> bytes | None:
        try:
            former.rename(self._path(name))
        except FileNotFoundError:
            # its owner finished it while it ended
            return None
        content = text_of(self._path(name).read_bytes().rstrip(b"\n"))
        if content is not None:
            return content
        self._log.error("{path} is damaged: what it stands for is not charged", path=str(self._path(name)))
        self.remove(name)
        return None

    def _path(self, name: str) -> Path:
        if self._claim is None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._claim = claim_new(self._directory, self._randbytes)
        return self._directory / f"{self._claim.name}-{name}.pending"
