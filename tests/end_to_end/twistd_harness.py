"""Real twistd processes, started in a directory of their own."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from benchmarks.free_ports import free_port
from benchmarks.measure import parse_stat

REPOSITORY = Path(__file__).parents[2]
#: seconds after which a test that waits for a process fails
PATIENCE = 30.0

MASTER_KEY = "not-like-a-key-4711"


#: twistd with the default handler of SIGINT: a shell starts background jobs, perhaps a CI's, with SIGINT ignored
_TWISTD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from twisted.scripts.twistd import run
run()
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", _TWISTD, *arguments]


def environment(**variables: str) -> dict[str, str]:
    """Return the tests' environment without the operator's own settings, plus these."""
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "COVERAGE_PROCESS_CONFIG") if name in os.environ
    }
    return {**kept, "PYTHONPATH": str(REPOSITORY), **variables}


def run(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run twistd until it ends."""
    return subprocess.run(
        command(*arguments),
        cwd=directory,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def ask(port: int, path: str, key: str | None = None, method: str = "GET", body: str | None = None) -> tuple[int, str]:
    """Send one request over a blocking socket, its body as JSON; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait for another process, whose clock the test cannot control."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, f"still not so after {PATIENCE:g} seconds"
        time.sleep(0.01)


def answers(port: int) -> bool:
    try:
        return ask(port, "/health/readiness")[0] == 200
    except OSError:
        return False


class Foreground:
    """``twistd -n``, serving; the end of the ``with`` block stops it and keeps what it wrote.

    Attributes:
        twistd_options: more options of twistd itself.
    """

    twistd_options: tuple[str, ...] = ()

    def __init__(self, directory: Path, port: int, *arguments: str, **variables: str) -> None:
        self.port = port
        self.stdout = self.stderr = ""
        listen = f"--listen=tcp:{port}:interface=127.0.0.1"
        self._process = subprocess.Popen(
            self._command(listen, *arguments),
            cwd=directory,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def _command(self, *arguments: str) -> list[str]:
        return command("-n", "--pidfile=", *self.twistd_options, "vllm-passthrough", *arguments)

    def __enter__(self) -> Self:
        try:
            wait_until(lambda: answers(self.port) or self._process.poll() is not None)
            assert self._process.poll() is None, self._process.communicate()
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self.terminate()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the process has used, user and system."""
        return parse_stat(Path(f"/proc/{self.pid}/stat").read_text()).ticks / os.sysconf("SC_CLK_TCK")

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def terminate(self) -> int:
        """Send SIGTERM, wait, and return the exit status."""
        self.signal()
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        self.stdout, self.stderr = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode


@contextmanager
def serving(*gateways: Foreground) -> Iterator[None]:
    """Let gateways start side by side; at the end each is stopped, also where another did not start."""
    with ExitStack() as stack:
        for gateway in gateways:
            stack.push(gateway)
        for gateway in gateways:
            gateway.__enter__()
        yield


class Configured(Foreground):
    """A gateway with a configuration file and a master key, in front of a server on this machine."""

    def __init__(self, directory: Path, server: int, settings: str, *arguments: str, **variables: str) -> None:
        (directory / "gateway.yaml").write_text(settings)
        super().__init__(
            directory,
            free_port(),
            "--config=gateway.yaml",
            *arguments,
            LITELLM_MASTER_KEY=MASTER_KEY,
            HOSTED_VLLM_API_BASE=f"http://127.0.0.1:{server}",
            **variables,
        )
