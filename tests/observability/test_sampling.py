"""Which completed requests have a line in the log, and that the others are counted."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from tests.observability.memory_sink import MemorySink
from twisted_vllm.context import FailedAttempt, Peer, RequestContext
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.lines import TextLines
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.logging.request_log import RequestLog
from twisted_vllm.observability.logging.sampling import RequestSampling
from twisted_vllm.observability.logging.writer import LogWriter
from twisted_vllm.observability.request_record import RequestRecord


def completed(**fields: Any) -> RequestContext:
    context = RequestContext(Peer("192.0.2.1", False), 100.0)
    context.request_id = b"r"
    context.sent = True
    values = {"outcome": "completed", "status": 200, "first_byte": 101.0, "ended": 102.0, **fields}
    for name, value in values.items():
        setattr(context, name, value)
    return context


@pytest.mark.parametrize(("share", "lines"), [(0.0, 0), (0.1, 100), (0.5, 500), (0.999, 999)])
def test_a_share_of_the_completed_requests_has_a_line_and_the_rest_is_counted(share: float, lines: int) -> None:
    sampling = RequestSampling(share)
    written = sum(sampling.has_line(completed()) for _ in range(1000))
    assert abs(written - lines) <= 1
    assert sampling.left_out == 1000 - written


@pytest.mark.parametrize(
    "fields",
    [
        {"outcome": "upstream_failed", "status": 502},
        {"outcome": "refused", "status": 401},
        {"outcome": "client_disconnected", "status": 0},
        {"status": 500},
        {"status": 404},
        {"attempts": (FailedAttempt("gpu-1", "status_503"),)},
        {"first_byte": 160.0},
    ],
)
def test_what_failed_was_refused_or_was_slow_has_its_line(fields: dict[str, Any]) -> None:
    assert RequestSampling(0.0, slow=60.0).has_line(completed(**fields))


def test_a_long_answer_that_began_early_is_not_slow() -> None:
    assert not RequestSampling(0.0, slow=60.0).has_line(completed(ended=1000.0))


def test_the_log_leaves_out_what_is_not_chosen() -> None:
    lines: list[Any] = []
    observer: Any = lambda event: lines.append(event["request_record"])  # noqa: E731 - an observer is a function
    for share, expected in ((1.0, 10), (0.5, 5), (0.0, 0)):
        log = RequestLog(
            observer,
            ClientText(Redactor()),
            lambda context: context.peer.host,
            sampling=RequestSampling(share),
        )
        lines.clear()
        for _ in range(10):
            log.finished(completed())
        assert len(lines) == expected


def test_a_report_says_how_many_were_left_out_since_the_last_one() -> None:
    events: list[Any] = []
    keep: Any = events.append
    globalLogPublisher.addObserver(keep)
    try:
        sampling = RequestSampling(0.0)
        for _ in range(3):
            sampling.has_line(completed())
        sampling.report()
        sampling.report()
    finally:
        globalLogPublisher.removeObserver(keep)
    assert [event["count"] for event in events] == [3]


@pytest.mark.parametrize(
    ("status", "outcome", "total_ms", "level"),
    [
        (200, "completed", 90_000.0, "info"),
        (502, "completed", 1.0, "warn"),
        (0, "client_disconnected", 59_000.0, "info"),
        (0, "client_disconnected", 60_000.0, "warn"),
        (502, "upstream_failed", 1.0, "warn"),
        (503, "refused", 1.0, "info"),
        (500, "failed", 1.0, "error"),
    ],
)
def test_the_level_of_a_line_says_whether_a_server_is_to_blame(
    status: int, outcome: str, total_ms: float, level: str
) -> None:
    levels: list[str] = []

    class Lines(TextLines):
        def request(self, record: RequestRecord, level: str) -> bytes:
            levels.append(level)
            return b""

    lines = Lines()
    observer = LineObserver(LogWriter(MemorySink(), lines.dropped), lines)
    observer.reconfigure(lines, "info", slow=60.0)
    fields = ("", "r", "c", "k", "h", "POST", "/x", "m", "gpu-1", status, outcome, "", 0, 0, None, total_ms)
    observer.request(RequestRecord(*fields))
    assert levels == [level]
