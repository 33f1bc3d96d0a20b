"""An rsyslog of the tests' own, without privileges: it listens on UDP, TCP and a UNIX socket, and writes a file."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.free_ports import free_port

START_SECONDS = 15
_TEXT = r"%msg%\n"
_CONFIGURATION = """
global(workDirectory="{directory}" maxMessageSize="64k")
module(load="imudp")
module(load="imtcp")
module(load="imuxsock" SysSock.Use="off")
input(type="imudp" address="127.0.0.1" port="{port}")
input(type="imtcp" address="127.0.0.1" port="{port}")
input(type="imuxsock" Socket="{directory}/log" UseSpecialParser="off" ParseHostname="on" RateLimit.Interval="0")
template(
  name="parsed" type="string"
  string="%syslogfacility-text% %syslogseverity-text% %app-name% %msgid% %procid% %timereported:::date-rfc3339% {text}"
)
action(type="omfile" file="{directory}/received" template="parsed")
"""


def find_rsyslog() -> str | None:
    """Return the path of rsyslog's program."""
    return shutil.which("rsyslogd") or shutil.which("/usr/sbin/rsyslogd")


class PrivateRsyslog:
    """A server that lasts as long as a test."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        # the path of a UNIX socket must be short
        self.directory = Path(tempfile.mkdtemp(prefix="rsyslog-"))

    @property
    def socket(self) -> Path:
        """The socket that takes the place of /dev/log."""
        return self.directory / "log"

    @property
    def received(self) -> list[str]:
        """The lines that it wrote: facility, severity, application, kind, process, time and text."""
        file = self.directory / "received"
        return file.read_text("utf-8").splitlines() if file.exists() else []

    def start(self) -> None:
        """Start the server and wait until it listens."""
        configuration = self.directory / "rsyslog.conf"
        configuration.write_text(_CONFIGURATION.format(directory=self.directory, port=self.port, text=_TEXT))
        pid_file = self.directory / "pid"
        self._process = subprocess.Popen(
            [self._binary, "-n", "-f", str(configuration), "-i", str(pid_file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while not (self.socket.exists() and self._listens()):
            assert self._process.poll() is None, "rsyslogd ended"
            assert time.monotonic() < deadline, "rsyslogd does not listen"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server; what it wrote stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_SECONDS)
            self._process = None

    def remove(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _listens(self) -> bool:
        wanted = f":{self.port:04X} "
        return all(wanted in Path(f"/proc/net/{kind}").read_text() for kind in ("tcp", "udp"))
