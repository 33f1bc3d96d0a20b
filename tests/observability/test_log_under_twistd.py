"""The log as an operator gets it: real twistd processes, with a plugin that sets up its log as the gateway does."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
#: seconds that a process is given before a test calls it stuck
PATIENCE = 30.0

PLUGIN = """
from twisted.application.service import ServiceMaker
probe = ServiceMaker("probe", "log_probe", "logs and stops", "log-probe")
"""

PROBE = """
import os
import sys
import warnings

import attrs
from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.logger import Logger
from twisted.python import log, usage

from twisted_vllm.config.settings import LogSettings
from twisted_vllm.observability.request_record import RequestRecord
from twisted_vllm.observability.logging.request_log import record_emitter
from twisted_vllm.observability.logging.setup import TwistdLog, finish, give_to_twistd, install, make_observer

RECORD = RequestRecord(
    time="2026-11-24T12:00:01.123Z", request_id="5f0e", client="10.0.0.7", key_name="team-a", key_hash="0123abcd",
    method="POST", route="/v1/chat/completions", model="qwen", server="host:8000", status=200, outcome="completed",
    error="", bytes_in=310, bytes_out=1234, first_byte_ms=4.0, total_ms=12.34,
)

class Options(usage.Options):
    optParameters = [["log-file", None, None, "log.file"]]
    optFlags = [["fail", None, "fail to start"], ["stay", None, "run until told to stop"]]

class Probe(MultiService):
    def __init__(self, observer, options):
        super().__init__()
        self.observer, self.options = observer, options

    def setServiceParent(self, parent):
        give_to_twistd(self.observer, parent)
        super().setServiceParent(parent)

    def privilegedStartService(self):
        install(self.observer)
        if self.options["fail"]:
            raise RuntimeError("cannot start, says sk-master-0123456789")
        super().privilegedStartService()

    def startService(self):
        super().startService()
        Logger().info("it runs with sk-master-0123456789")
        log.msg("from the old log")
        warnings.warn("a warning")
        print("printed")
        # once the reactor runs, a signal stops it; before, the process would just be killed
        reactor.callWhenRunning(record_emitter(self.observer), RECORD)
        if not self.options["stay"]:
            reactor.callWhenRunning(reactor.stop)

    def stopService(self):
        done = super().stopService()
        finish(self.observer)
        return done

def makeService(options):
    settings = LogSettings(file=options["log-file"])
    twistd = TwistdLog.from_options(options.parent)
    return Probe(make_observer(settings, ["sk-master-0123456789"], sys.stdout, twistd), options)
"""

#: what every run logs, in this order, wherever it logs to
MESSAGES = ["starting up", "reactor class", "it runs with", "from the old log", "a warning", "printed", "Shut Down"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    plugins = tmp_path / "path" / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "log_probe_plugin.py").write_text(PLUGIN)
    (tmp_path / "path" / "log_probe.py").write_text(PROBE)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *arguments]


def environment(directory: Path) -> dict[str, str]:
    path = os.pathsep.join([str(directory.parent / "path"), str(REPOSITORY)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "default"}


def twistd(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=directory,
        env=environment(directory),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def read_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def assert_is_the_log(text: str) -> None:
    lines = read_lines(text)
    messages = [line["message"] for line in lines if "message" in line]
    found = [wanted for message in messages for wanted in MESSAGES if wanted in message]
    assert found == MESSAGES
    assert [line["request_id"] for line in lines if "request_id" in line] == ["5f0e"]
    assert "sk-master" not in text


def test_standard_output_holds_our_lines_once_and_nothing_else(directory: Path) -> None:
    done = twistd(directory, "-n", "--pidfile=", "log-probe")
    assert (done.returncode, done.stderr) == (0, "")
    assert_is_the_log(done.stdout)
    assert list(directory.iterdir()) == []


def test_a_log_file_of_the_settings_takes_everything(directory: Path) -> None:
    done = twistd(directory, "-n", "--pidfile=", "log-probe", "--log-file=our.log")
    assert (done.stdout, done.stderr) == ("", "")
    assert_is_the_log((directory / "our.log").read_text())


def test_twistd_s_logfile_wins_over_the_settings_and_is_in_our_format(directory: Path) -> None:
    done = twistd(directory, "-n", "--pidfile=", "--logfile=its.log", "log-probe", "--log-file=our.log")
    assert (done.stdout, done.stderr) == ("", "")
    assert_is_the_log((directory / "its.log").read_text())
    assert not (directory / "our.log").exists()


def test_an_observer_of_the_operator_s_own_comes_first(directory: Path) -> None:
    (directory.parent / "path" / "own_observer.py").write_text(
        "import sys\n"
        "from twisted.logger import FileLogObserver, formatEvent\n"
        "def make():\n"
        "    return FileLogObserver(sys.stdout, lambda event: 'own: ' + formatEvent(event) + '\\n')\n"
    )
    done = twistd(directory, "-n", "--pidfile=", "--logger=own_observer.make", "log-probe")
    assert all(line.startswith("own: ") for line in done.stdout.splitlines())
    assert "own: 200 POST /v1/chat/completions completed 12.34ms rid=5f0e\n" in done.stdout


def test_a_start_that_fails_is_in_the_log_without_its_secret(directory: Path) -> None:
    done = twistd(directory, "-n", "--pidfile=", "log-probe", "--fail")
    assert done.returncode == 1
    assert "RuntimeError: cannot start, says ***" in done.stdout
    assert "sk-master" not in done.stdout + done.stderr
    assert all(line["namespace"] for line in read_lines(done.stdout))


def test_a_terminal_gets_text(directory: Path) -> None:
    parent_end, child_end = pty.openpty()
    try:
        process = subprocess.Popen(
            command("-n", "--pidfile=", "log-probe"), cwd=directory, env=environment(directory), stdout=child_end
        )
    finally:
        os.close(child_end)
    text = ""
    with open(parent_end, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(65536):
                text += piece.decode()
        except OSError:
            # Linux says EIO once the other end is closed.
            pass
    assert process.wait(PATIENCE) == 0
    assert "12:00:01.123 \x1b[32m200\x1b[0m POST /v1/chat/completions qwen key=team-a 12.3ms" in text
    assert "it runs with ***" in text
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3} info .*starting up", text)


@pytest.fixture
def daemon(directory: Path) -> Iterator[int]:
    """The process id of a daemon that was told nothing about its log."""
    done = twistd(directory, "--pidfile=daemon.pid", "log-probe", "--stay")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    process_id = int((directory / "daemon.pid").read_text())
    yield process_id
    stop_daemon(directory, process_id)


def stop_daemon(directory: Path, process_id: int) -> None:
    if (directory / "daemon.pid").exists():
        os.kill(process_id, signal.SIGTERM)
        wait_until(lambda: not (directory / "daemon.pid").exists())


def wait_until(is_so: Any) -> None:
    """Wait for another process: it has no clock that a test could turn."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_daemon_logs_to_twistd_log_and_follows_logrotate(directory: Path, daemon: int) -> None:
    log = directory / "twistd.log"
    wait_until(lambda: "5f0e" in log.read_text())
    log.rename(directory / "moved.log")
    os.kill(daemon, signal.SIGUSR1)
    stop_daemon(directory, daemon)
    wait_until(lambda: log.exists() and "Shut Down" in log.read_text())
    assert_is_the_log((directory / "moved.log").read_text() + log.read_text())


def test_a_daemon_cannot_log_to_standard_output(directory: Path) -> None:
    done = twistd(directory, "--pidfile=", "--logfile=-", "log-probe")
    assert done.returncode == 1
    assert done.stderr == (
        "A daemon cannot log to standard output: name a file with --logfile, or start with twistd -n.\n"
    )
