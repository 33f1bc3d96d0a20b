"""Lines that others can cause at will: at most one a second of a kind, and none is lost without a count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger, LogLevel

from tests.builders import RECORD
from tests.observability.memory_sink import MemorySink
from twisted_vllm.observability.logging.lines import JsonLines, TextLines
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.repeats import LEFT_OUT, MAX_KINDS, MOST_A_SECOND, Repeats
from twisted_vllm.observability.logging.writer import LogWriter


class Log:
    """A log, its clock, and what was written."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._sink = MemorySink()
        lines = JsonLines()
        self.observer = LineObserver(LogWriter(self._sink, lines.dropped), lines, monotonic=self.clock.seconds)
        self.logger = Logger(namespace="here", observer=self.observer)

    @property
    def lines(self) -> list[dict[str, Any]]:
        self.observer.writer.flush()
        return [json.loads(line) for line in self._sink.data.splitlines()]

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.observer.writer.stop()


def unreachable(log: Log, server: str) -> None:
    log.logger.warn("No connection to {server}", server=server, once_a_second=server)


def test_18000_marked_events_in_ten_seconds_are_one_line_a_second(log: Log) -> None:
    for _ in range(18_000):
        unreachable(log, "a:1")
        log.clock.advance(10 / 18_000)
    log.observer.finish()
    assert 10 <= len(log.messages) <= 12
    counts = [int(text.rpartition(" ")[2].rstrip(")")) for text in log.messages[1:-1]]
    assert sum(counts) + int(log.messages[-1].split(" ")[3].rstrip(",")) + len(log.messages) - 1 == 18_000


def test_the_next_line_says_how_many_were_left_out(log: Log) -> None:
    for _ in range(5):
        unreachable(log, "a:1")
    log.clock.advance(1)
    unreachable(log, "a:1")
    assert log.messages == ["No connection to a:1", "No connection to a:1 (lines like this left out: 4)"]


def test_without_a_next_one_any_other_line_brings_the_count(log: Log) -> None:
    for _ in range(5):
        unreachable(log, "a:1")
    log.clock.advance(1)
    log.logger.info("something else")
    assert log.messages[1:] == [
        "Lines left out: 4, like No connection to … (a:1)",
        "something else",
    ]
    assert [line["level"] for line in log.lines] == ["warn", "warn", "info"]


def test_the_line_of_a_request_brings_the_count_too(log: Log) -> None:
    for _ in range(5):
        unreachable(log, "a:1")
    log.observer.request(RECORD)
    log.clock.advance(1)
    log.observer.request(RECORD)
    log.observer.request(RECORD)
    assert ["message" in line for line in log.lines] == [True, False, True, False, False]


def test_the_end_of_the_log_brings_the_count(log: Log) -> None:
    unreachable(log, "a:1")
    unreachable(log, "a:1")
    log.observer.finish()
    log.observer.finish()
    assert log.messages[1:] == ["Lines left out: 1, like No connection to … (a:1)"]


def test_each_server_has_its_own_line(log: Log) -> None:
    for _ in range(3):
        for server in ("a:1", "b:2"):
            unreachable(log, server)
    assert log.messages == ["No connection to a:1", "No connection to b:2"]


def test_events_that_nobody_marked_are_limited_as_well(log: Log) -> None:
    for _ in range(500):
        try:
            raise ValueError("a fault of the gateway")
        except ValueError:
            log.logger.failure("A request could not be processed")
    assert log.messages == ["A request could not be processed"] * MOST_A_SECOND
    log.clock.advance(1)
    log.logger.info("later")
    assert log.messages[-2] == f"Lines left out: {500 - MOST_A_SECOND}, like A request could not be processed"


def test_requests_have_their_line_each(log: Log) -> None:
    for _ in range(500):
        log.observer.request(RECORD)
    assert len(log.lines) == 500


def test_at_debug_nothing_is_left_out() -> None:
    repeats = Repeats()
    event = {"log_level": LogLevel.debug, "log_format": "a detail", "once_a_second": True}
    assert all(repeats.admit(event, 0.0) for _ in range(500))


def test_the_readable_format_says_how_many_as_well() -> None:
    event = {"log_level": LogLevel.warn, "log_format": "again", LEFT_OUT: 7, "log_time": 0.0}
    assert b"again (lines like this left out: 7)" in TextLines().event(event)


def test_the_memory_for_kinds_is_bounded_and_a_forgotten_kind_tells_its_count() -> None:
    repeats = Repeats()
    first: LogEvent = {"log_level": LogLevel.warn, "log_format": "first", "once_a_second": True}
    repeats.admit(first, 0.0)
    repeats.admit(first, 0.0)
    told = [repeats.admit({"log_level": LogLevel.info, "log_format": f"kind {n}"}, 0.0) for n in range(10_000)]
    assert len(repeats) == MAX_KINDS
    assert [event["count"] for events in told for event in events if "count" in event] == [1]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.floats(0, 3, allow_nan=False)), max_size=200))
def test_every_event_is_written_or_counted(events: list[tuple[str | None, float]]) -> None:
    repeats, now = Repeats(), 0.0
    written: list[LogEvent] = []
    for server, pause in events:
        now += pause
        event = {"log_level": LogLevel.warn, "log_format": "x", "log_namespace": "n"}
        written += repeats.admit(event if server is None else {**event, "once_a_second": server}, now)
    written += repeats.summaries(now, all_of_them=True)
    counted = sum(event.get("count", 0) + event.get(LEFT_OUT, 0) for event in written)
    assert counted + sum("count" not in event for event in written) == len(events)
    assert not repeats.pending


def test_a_long_traceback_is_written_to_its_last_line(log: Log) -> None:
    for number in range(200):
        log.logger.emit(LogLevel.error, "{log_io}", log_io=f"line {number}")
    assert log.messages == [f"line {number}" for number in range(200)]
