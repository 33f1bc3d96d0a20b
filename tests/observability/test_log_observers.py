from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from twisted.application.internet import ClientService
from twisted.internet.defer import fail
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher, formatEvent, globalLogPublisher
from twisted.python import log as old_log
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.builders import RECORD
from tests.observability.memory_sink import MemorySink
from twisted_vllm.observability.logging.lines import JsonLines
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.request_log import record_emitter
from twisted_vllm.observability.logging.writer import LogWriter


class Log:
    """An observer and what it wrote."""

    def __init__(self, level: str = "info") -> None:
        self._sink = MemorySink()
        lines = JsonLines()
        self.observer = LineObserver(LogWriter(self._sink, lines.dropped), lines, level)

    def read(self) -> list[dict[str, Any]]:
        self.observer.writer.stop()
        return [json.loads(line) for line in self._sink.data.splitlines()]


@implementer(IStreamClientEndpoint)
class Refusing:
    """An address at which nothing listens."""

    def connect(self, factory: Any) -> Any:
        return fail(ConnectionRefusedError())


def test_the_observer_is_a_log_observer() -> None:
    assert verifyObject(ILogObserver, Log().observer)


def test_a_request_is_one_line() -> None:
    log = Log()
    record_emitter(log.observer)(RECORD)
    [line] = log.read()
    assert line["request_id"] == "5f0e"
    assert line["status"] == 200


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        ("completed", "info"),
        ("refused", "info"),
        ("client_disconnected", "info"),
        ("upstream_failed", "warn"),
        ("upstream_error", "warn"),
        ("failed", "error"),
    ],
)
def test_a_request_that_failed_has_a_higher_level(outcome: str, level: str) -> None:
    log = Log()
    record_emitter(log.observer)(msgspec.structs.replace(RECORD, outcome=outcome))
    assert log.read()[0]["level"] == level


def test_at_warn_only_failed_requests_are_logged() -> None:
    log = Log("warn")
    for outcome in ("completed", "refused", "upstream_failed"):
        record_emitter(log.observer)(msgspec.structs.replace(RECORD, outcome=outcome))
    assert [line["outcome"] for line in log.read()] == ["upstream_failed"]


def test_any_other_observer_can_read_a_request_too() -> None:
    events: list[dict[str, Any]] = []
    keep: Any = events.append
    record_emitter(LogPublisher(keep), now=lambda: 5.0)(RECORD)
    [event] = events
    assert event["request_record"] is RECORD
    assert event["log_time"] == 5.0
    assert formatEvent(event) == "200 POST /v1/chat/completions completed 12.34ms rid=5f0e"


def test_events_below_the_level_are_left_out() -> None:
    log = Log("warn")
    logger = Logger(observer=log.observer)
    for level in LogLevel.iterconstants():
        logger.emit(level, "hello")
    assert [line["level"] for line in log.read()] == ["warn", "error", "critical"]


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'loud' is not a log level; use one of debug, info"):
        Log("loud")


@pytest.mark.parametrize(("level", "shown"), [("info", 0), ("debug", 1)])
def test_factories_that_start_are_of_interest_to_developers_only(level: str, shown: int) -> None:
    log = Log(level)
    Logger(observer=log.observer).info("Starting factory {factory!r}", factory=object())
    assert len(log.read()) == shown


def test_attempts_to_reach_redis_again_do_not_fill_the_log() -> None:
    log, clock = Log(), Clock()
    service = ClientService(Refusing(), Factory(), retryPolicy=lambda _: 0.5, clock=clock)
    globalLogPublisher.addObserver(log.observer)
    try:
        service.startService()
        clock.pump([0.5] * 10)
        service.stopService()
    finally:
        globalLogPublisher.removeObserver(log.observer)
    assert log.read() == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GatewaySite starting on 4000", 0),
        ("GatewaySite (TLS) starting on 4443", 0),
        ("GatewaySite starting on '/run/gateway.sock'", 0),
        ("(TCP Port 4000 Closed)", 0),
        ("(UNIX Port '/run/gateway.sock' Closed)", 0),
        ("Backup starting on host now", 1),
    ],
)
def test_what_a_port_says_of_itself_in_the_old_way_is_for_developers(text: str, shown: int) -> None:
    log = Log()
    log.observer(
        {"log_format": "{log_text}", "log_text": text, "log_namespace": "log_legacy", "log_level": LogLevel.info}
    )
    assert len(log.read()) == shown


def test_a_failure_is_logged_with_its_traceback() -> None:
    log = Log()
    try:
        raise KeyError("gone")
    except KeyError:
        Logger(observer=log.observer).failure("it broke")
    [line] = log.read()
    assert (line["level"], line["message"]) == ("critical", "it broke")
    assert "KeyError: 'gone'" in line["failure"]


def test_the_old_log_is_understood() -> None:
    log = Log()
    publisher = old_log.LogPublisher(observerPublisher=LogPublisher(), publishPublisher=LogPublisher(log.observer))
    publisher.msg("hello", "world")
    publisher.msg(format="%(n)d of them", n=3)
    publisher.msg("wrong", isError=True)
    assert [(line["level"], line["message"]) for line in log.read()] == [
        ("info", "hello world"),
        ("info", "3 of them"),
        ("critical", "wrong"),
    ]


def test_an_event_that_says_nothing_is_no_line() -> None:
    log = Log()
    log.observer({"log_level": LogLevel.info})
    assert log.read() == []
