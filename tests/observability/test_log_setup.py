from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Application, MultiService
from twisted.logger import ILogObserver, Logger, globalLogPublisher

from twisted_vllm.config.settings import LogSettings
from twisted_vllm.observability.logging.setup import (
    GatewayLog,
    LogTargetError,
    TwistdLog,
    give_to_twistd,
    install,
    make_observer,
    uninstall,
)


def test_twistd_s_options_are_read() -> None:
    options: dict[str, Any] = {
        "nodaemon": 1,
        "debug": 0,
        "logfile": "x.log",
        "syslog": 1,
        "prefix": "p",
        "logger": None,
    }
    assert TwistdLog.from_options(options) == TwistdLog(logfile="x.log", syslog_prefix="p")
    assert TwistdLog.from_options({"nodaemon": 0, "debug": 0, "logger": print}) == TwistdLog(
        is_daemon=True, has_logger=True
    )
    assert TwistdLog.from_options({"nodaemon": 0, "debug": 1}) == TwistdLog()
    assert TwistdLog.from_options(None) == TwistdLog()


def make(tmp_path: Path, log_format: str = "auto", twistd: TwistdLog | None = None) -> ILogObserver:
    settings = LogSettings(file=str(tmp_path / "log"), format=log_format)
    with (tmp_path / "stdout").open("w") as stdout:
        return make_observer(settings, ["hunter2-hunter2"], stdout, twistd)


def test_an_installed_observer_writes_until_it_is_taken_out(tmp_path: Path) -> None:
    observer = make(tmp_path)
    install(observer)
    Logger().info("inside, with hunter2-hunter2")
    uninstall(observer)
    Logger().info("outside")
    [line] = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line)["message"] == "inside, with ***"
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_an_application_is_given_the_observer_that_twistd_looks_for(tmp_path: Path) -> None:
    observer = make(tmp_path)
    application = Application("test")
    give_to_twistd(observer, application)
    assert application.getComponent(ILogObserver) is observer
    uninstall(observer)


def test_a_parent_that_is_no_application_is_left_alone(tmp_path: Path) -> None:
    give_to_twistd(make(tmp_path), MultiService())


@pytest.mark.parametrize(("log_format", "start"), [("auto", "{"), ("json", "{"), ("text", "20")])
def test_a_file_gets_json_unless_text_was_asked_for(tmp_path: Path, log_format: str, start: str) -> None:
    observer = make(tmp_path, log_format)
    install(observer)
    Logger().info("hello")
    uninstall(observer)
    assert (tmp_path / "log").read_text().startswith(start)


def test_an_operator_s_own_observer_is_reached_through_the_publisher(tmp_path: Path) -> None:
    observer = make(tmp_path, twistd=TwistdLog(has_logger=True))
    publisher: object = globalLogPublisher
    assert observer is publisher
    install(observer)
    give_to_twistd(observer, Application("test"))
    uninstall(observer)


def test_a_log_file_that_cannot_be_opened_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        make(tmp_path, twistd=TwistdLog(logfile=str(tmp_path / "missing" / "log")))


def test_other_settings_of_the_log_hold_from_the_next_line_on(tmp_path: Path) -> None:
    observer = make(tmp_path)
    assert isinstance(observer, GatewayLog)
    install(observer)
    Logger().info("first")
    settings = LogSettings(file=str(tmp_path / "other"), format="text", level="warn")
    apply = observer.prepare(settings)
    Logger().info("second")
    apply()
    Logger().info("third")
    Logger().warn("fourth, with hunter2-hunter2")
    uninstall(observer)
    former = [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()]
    assert former == ["first", "second"]
    [line] = (tmp_path / "other").read_text().splitlines()
    assert line.endswith("fourth, with ***")


def test_a_file_of_the_log_is_below_the_directory_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = make(tmp_path)
    assert isinstance(observer, GatewayLog)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        observer.prepare(LogSettings(file="missing/log"))
    uninstall(observer)


def test_a_daemon_is_not_given_standard_output_later(tmp_path: Path) -> None:
    observer = make(tmp_path, twistd=TwistdLog(is_daemon=True))
    assert isinstance(observer, GatewayLog)
    with pytest.raises(LogTargetError, match="A daemon cannot log to standard output"):
        observer.prepare(LogSettings(file="-"))
    uninstall(observer)
