"""A PostgreSQL server of the tests' own: files in a temporary directory, and a UNIX socket alone to listen on."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

START_SECONDS = 30
STOP_SECONDS = 15


def find_binaries() -> Path | None:
    """Return the directory of PostgreSQL's programs, which Debian keeps off the PATH."""
    places: list[Path] = []
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        places.append(Path(asked.stdout.strip()))
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    initdb = shutil.which("initdb")
    if initdb is not None:
        places.append(Path(initdb).parent)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


def unprivileged() -> dict[str, Any]:
    """Return subprocess arguments for a user that PostgreSQL accepts: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise LookupError("neither `postgres` nor `nobody` is a user here, and PostgreSQL refuses to run as root")


class PrivatePostgresql:
    """A server that lasts as long as the test session."""

    user = "gateway"

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user = unprivileged()
        self._databases = 0
        # Some characters that a URL needs to escape, so that every test sees that it is.
        self.password = f"p:/@%{secrets.token_hex(8)}"
        # The system's temporary directory: pytest's own is closed to other users, and too long for a socket's path.
        self.directory = Path(tempfile.mkdtemp(prefix="private-postgresql-"))
        if self._as_user:
            os.chown(self.directory, self._as_user["user"], self._as_user["group"])

    def initialise(self) -> None:
        """Make the server's files."""
        password_file = self.directory / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o644)
        options = ["--username", self.user, "--pwfile", str(password_file), "--auth", "scram-sha-256"]
        options += ["--encoding", "UTF8", "--locale", "C", "--no-sync"]
        command = [str(self._binaries / "initdb"), "--pgdata", str(self.directory / "data"), *options]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **self._as_user)
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr}")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = ["listen_addresses=", f"unix_socket_directories={self.directory}", "fsync=off", "max_connections=40"]
        command = [str(self._binaries / "postgres"), "-D", str(self.directory / "data")]
        for setting in settings:
            command += ["-c", setting]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **self._as_user)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError((self.directory / "log").read_text()) from None
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server at once, whoever is connected; it can be started again."""
        process, self._process = self._process, None
        if process is None:
            return
        # SIGINT is PostgreSQL's fast shutdown: it ends its clients' sessions.
        process.send_signal(2)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

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

    def make_database(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"test_{self._databases}"
        self._execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str, password: str | None = None) -> str:
        """Return the URL of a database."""
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{self.user}:{secret}@/{name}?host={self.directory}"

    def _execute(self, statement: str) -> None:
        with psycopg.connect(
            host=str(self.directory), user=self.user, password=self.password, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement.encode())
