"""Starts programs in the background, waits until they serve, and always stops them."""

from __future__ import annotations

import http.client
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

START_SECONDS = 40.0
_STOP_SECONDS = 5.0
_ASK_SECONDS = 5.0
_TAIL_LINES = 5


class CannotStart(Exception):
    """A program that did not start, or does not serve; the text says why."""


def raise_file_limit(wanted: int) -> int:
    """Raise the limit of open files as far as it may be, at most to `wanted`; children inherit it. Return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= possible:
        return wanted if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    return possible


def environment(**variables: str) -> dict[str, str]:
    """Return an environment without the user's own settings of a gateway, plus these variables."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | variables


@contextmanager
def running(
    command: Sequence[str], log: Path, *, environ: Mapping[str, str], directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, its output in a file, and end it and its children.

    Raises:
        CannotStart: it cannot be run.
    """
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                cwd=directory,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotStart(f"{command[0]}: {error.strerror}") from error
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and whatever of that session is left."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    finally:
        # children that outlived it
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(_STOP_SECONDS)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path, is_ready: Callable[[], bool]) -> None:
    """Wait for a program to serve.

    Raises:
        CannotStart: it ended, or does not serve in time; with the end of what it wrote.
    """
    end = time.monotonic() + START_SECONDS
    while not is_ready():
        if process.poll() is not None:
            raise CannotStart(f"it ended with status {process.returncode}{_tail(log)}")
        if time.monotonic() > end:
            raise CannotStart(f"it does not serve after {START_SECONDS:g} s{_tail(log)}")
        time.sleep(0.05)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = [line for line in lines if line.strip()][-_TAIL_LINES:]
    return "".join(f"\n    {line}" for line in last)


def answers(port: int, path: str, key: str | None = None) -> bool:
    """Return whether a port of this machine answers a GET with 200."""
    try:
        return ask("127.0.0.1", port, "GET", path, key=key)[0] == 200
    except OSError:
        return False


def ask(
    host: str, port: int, method: str, path: str, *, key: str | None = None, body: bytes | None = None
) -> tuple[int, bytes]:
    """Send one request, and return status and body.

    Raises:
        OSError: there is no answer, or it is no HTTP.
    """
    connection = http.client.HTTPConnection(host, port, timeout=_ASK_SECONDS)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer ({type(error).__name__})") from error
    finally:
        connection.close()


def end_on_sigterm() -> None:
    """Raise SystemExit on SIGTERM and SIGHUP, so that everything is stopped."""

    def unwind(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, unwind)
    signal.signal(signal.SIGHUP, unwind)
