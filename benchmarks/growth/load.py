"""The load: ``wrk`` with requests of many keys."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import msgspec

from benchmarks.processes import CannotStart, environment, running

SCRIPT = Path(__file__).with_name("requests.lua")
CONNECTIONS = 32
_PATH = "/vllm/v1/chat/completions"
_RESULT = "RESULT "
_GRACE_SECONDS = 60.0


class Outcome(msgspec.Struct, frozen=True):
    """What came of a load.

    Attributes:
        requests: that were answered.
        seconds: how long it took.
        failed: answers with a status of 400 or more.
        broken: connections that failed, and answers that did not come.
        p50, p99: milliseconds.
        longest: likewise, of the slowest; 0 where the script does not say.
        bytes: that were received, also of answers that were not whole at the end; 0 where the script does not say.
    """

    requests: int
    seconds: float
    failed: int
    broken: int
    p50: float
    p99: float
    bytes: int = 0
    longest: float = 0.0

    def complaint(self) -> str | None:
        """Return what went wrong, in words; None where nothing did."""
        if not self.failed and not self.broken:
            return None
        return f"of {self.requests:,} requests {self.failed:,} failed and {self.broken:,} broke off"


@attrs.frozen
class Requests:
    """Whose requests are sent.

    Attributes:
        keys: the first so many keys, in turn.
        end_users: the first so many end users, in turn; 0 names none.
    """

    keys: int = 1
    end_users: int = 0

    def arguments(self, *, before: int = 0, pause_ms: int = 0) -> list[str]:
        """Return the script's arguments."""
        return [str(self.keys), str(self.end_users), str(before), str(pause_ms)]


def find_wrk() -> str:
    """Return where wrk is.

    Raises:
        CannotStart: it is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise CannotStart("wrk is not installed (Debian: apt-get install wrk)")
    return found


def apply_load(port: int, requests: Requests, seconds: float, *, before: int = 0) -> Outcome:
    """Send requests on all connections, each as soon as the one before is answered.

    Args:
        port: the gateway's.
        requests: whose.
        seconds: how long; wrk takes whole seconds.
        before: requests that came before: the keys and end users go on where they stopped.

    Raises:
        CannotStart: wrk failed.
    """
    return run_wrk(_command(port, CONNECTIONS, seconds, requests.arguments(before=before)), seconds)


def run_wrk(command: Sequence[str], seconds: float) -> Outcome:
    """Run wrk with a script that prints an `Outcome`.

    Raises:
        CannotStart: wrk failed.
    """
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=seconds + _GRACE_SECONDS, check=False
    )
    result = next((line for line in done.stdout.splitlines() if line.startswith(_RESULT)), None)
    if result is None:
        raise CannotStart(f"wrk failed: {(done.stderr or done.stdout)[:500]}")
    return msgspec.json.decode(result.removeprefix(_RESULT), type=Outcome)


@contextmanager
def steady_load(port: int, requests: Requests, rate: int, directory: Path, *, longest: float) -> Iterator[Path]:
    """Send about so many requests a second during a block, for at most so many seconds; yield wrk's output.

    Each connection sends ten a second, so that the rate hardly falls when answers take longer.
    """
    connections = max(rate // 10, 1)
    output = directory / "wrk.out"
    arguments = requests.arguments(pause_ms=100)
    command = _command(port, connections, longest, arguments)
    with running(command, output, environ=environment(), directory=directory):
        yield output


def _command(port: int, connections: int, seconds: float, arguments: list[str]) -> list[str]:
    url = f"http://127.0.0.1:{port}{_PATH}"
    options = ["-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--latency", "--timeout=30s", f"-s{SCRIPT}"]
    return [find_wrk(), *options, url, "--", *arguments]
