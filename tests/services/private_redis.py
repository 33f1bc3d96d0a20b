"""A Redis or Valkey server of the tests' own, on a port of the loopback that was free, with a password."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from benchmarks.free_ports import free_port
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import RedisServer

START_SECONDS = 15


#: the programs that the tests can run on
PROGRAMS = ("redis-server", "valkey-server")


def find_redis() -> str | None:
    """Return the name of a program that is installed."""
    return next(iter(installed()), None)


def installed() -> list[str]:
    """Return the names of the programs that are installed."""
    return [name for name in PROGRAMS if shutil.which(name) is not None]


class PrivateRedis:
    """A server that keeps nothing on disk and lasts as long as the test session.

    Args:
        program: the program's name, one of `PROGRAMS`.
        lines: more lines of its configuration.
        password: its password; None for a new one.
        database: the number of the gateway's database on it.
        arguments: more arguments of the program.
    """

    def __init__(
        self,
        program: str,
        lines: Sequence[str] = (),
        *,
        password: str | None = None,
        database: int = 2,
        arguments: Sequence[str] = (),
    ) -> None:
        self.program = program
        self.database = database
        self._lines = lines
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.password = password or f"p:/@%{secrets.token_hex(8)}"
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="private-redis-"))

    @property
    def server(self) -> RedisServer:
        """Where it is, as the gateway is told; with a database that is not the first."""
        return RedisServer("127.0.0.1", self.port, self.database, password=Secret(self.password))

    @property
    def url(self) -> str:
        """Where it is, as an operator writes it."""
        return f"redis://:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{self.server.database}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        file = self.directory / "redis.conf"
        file.write_text(
            f'bind 127.0.0.1\nport {self.port}\nrequirepass "{self.password}"\nsave ""\nappendonly no\n'
            f"dir {self.directory}\nlogfile {self.directory}/log\n" + "".join(f"{line}\n" for line in self._lines)
        )
        file.chmod(0o600)
        self._process = subprocess.Popen([self.program, str(file), *self._arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.command("PING")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError((self.directory / "log").read_text()) from None
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server at once; it can be started again, and has forgotten everything."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

    def pause(self) -> None:
        """Let it answer nobody, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, *words: str) -> bytes:
        """Run one command on the gateway's database, and return the raw answer."""
        select = [("SELECT", str(self.database))] if self.database else []
        commands = [("AUTH", self.password), *select, words]
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_SECONDS) as connection:
            connection.sendall(b"".join(_encoded(command) for command in commands) + _encoded(("QUIT",)))
            answer = b""
            # A Sentinel knows no QUIT.
            while b"unknown command 'QUIT'" not in answer and (data := connection.recv(65_536)):
                answer += data
        accepted = b"+OK\r\n" * (len(commands) - 1)
        assert answer.startswith(accepted), answer
        return (
            answer.removeprefix(accepted).partition(b"-ERR unknown command 'QUIT'")[0].removesuffix(b"+OK\r\n").strip()
        )

    def names(self) -> set[str]:
        """Return the names of all keys of the gateway's database."""
        return {line.decode() for line in self.command("KEYS", "*").split(b"\r\n")[2::2]}


def _encoded(words: tuple[str, ...]) -> bytes:
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
