"""A PostgreSQL server of the tests' own: files in a temporary directory, and a UNIX socket alone to listen on."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from benchmarks.postgresql import PostgresqlServer
from benchmarks.postgresql import find_binaries as find_binaries
from benchmarks.postgresql import unprivileged as unprivileged


class PrivatePostgresql(PostgresqlServer):
    """A server that lasts as long as the test session."""

    def __init__(self, binaries: Path) -> None:
        self._databases = 0
        super().__init__(
            binaries,
            # The system's temporary directory: pytest's own is closed to other users, and too long for a socket's path.
            Path(tempfile.mkdtemp(prefix="private-postgresql-")),
            # Some characters that a URL needs to escape, so that every test sees that it is.
            f"p:/@%{secrets.token_hex(8)}",
            ("fsync=off", "max_connections=40"),
        )

    def freeze(self) -> None:
        """Stop the server's processes where they are: connections stay open, and nothing is answered."""
        assert self._process is not None
        # The first one first: it starts the others.
        self._signal([self._process.pid], signal.SIGSTOP)
        self._signal(self._children(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the processes go on."""
        assert self._process is not None
        self._signal([*self._children(), self._process.pid], signal.SIGCONT)

    def _children(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _signal(self, pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def remove(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def dump(self, url: str) -> str:
        """Return a database's content, as ``pg_dump`` writes it."""
        command = [str(self._binaries / "pg_dump"), "--inserts", "--no-comments", url]
        dumped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        # psql's own commands, which no server takes
        return "".join(line for line in dumped.splitlines(keepends=True) if not line.startswith("\\"))

    def make_database(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)
