"""A PostgreSQL server of the benchmarks' or the tests' own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterable
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
    """Return subprocess arguments for a user that PostgreSQL accepts: it refuses to run as root.

    Raises:
        LookupError: there is no such user.
    """
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise LookupError("neither `postgres` nor `nobody` is a user here, and PostgreSQL refuses to run as root")


class PostgresqlServer:
    """A server with its files in one directory, which listens on a UNIX socket there.

    Args:
        binaries: where its programs are.
        directory: where its files are, in the directory ``data``; as short as a socket's path must be. The server's
            user gets it.
        password: of its only user, `user`.
        settings: more of its settings, as in ``fsync=off``.
        before: stands before the server's command, such as what runs it elsewhere, and as a user that it accepts.

    Raises:
        LookupError: as `unprivileged`.
    """

    user = "gateway"

    def __init__(
        self,
        binaries: Path,
        directory: Path,
        password: str,
        settings: Iterable[str] = (),
        before: Iterable[str] = (),
    ) -> None:
        self.password = password
        self.directory = directory
        self._binaries = binaries
        self._settings = tuple(settings)
        self._before = tuple(before)
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user = unprivileged()
        if self._as_user:
            os.chown(directory, self._as_user["user"], self._as_user["group"])

    @property
    def process(self) -> int | None:
        """The id of the server's first process, while it runs."""
        return None if self._process is None else self._process.pid

    def initialise(self) -> None:
        """Make the server's files.

        Raises:
            RuntimeError: that failed.
        """
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
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: it does not; with its log.
        """
        settings = ["listen_addresses=", f"unix_socket_directories={self.directory}", *self._settings]
        command = [*self._before, str(self._binaries / "postgres"), "-D", str(self.directory / "data")]
        as_user = {} if self._before else self._as_user
        for setting in settings:
            command += ["-c", setting]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **as_user)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
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

    def url(self, name: str, password: str | None = None) -> str:
        """Return the URL of a database."""
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{self.user}:{secret}@/{name}?host={self.directory}"

    def execute(self, statement: str) -> None:
        """Execute a statement outside a transaction.

        Raises:
            psycopg.Error: it failed.
        """
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())
