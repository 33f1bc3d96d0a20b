"""What the log says of failures of servers: at warn, once a second for each server and cause."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from tests.observability.memory_sink import MemorySink
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.errors import NoHealthyUpstream, ServerBusy, UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.client.connect_errors import with_words
from twisted_vllm.observability.logging.lines import TextLines
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.writer import LogWriter
from twisted_vllm.proxy.server_failures import ANSWERED, RETRIED, log_failure, log_nowhere


class Logged:
    """What the gateway's log writes at level info, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sink = MemorySink()
        lines = TextLines()
        self.observer = LineObserver(LogWriter(self.sink, lines.dropped), lines, monotonic=lambda: self.now)
        self.observer.writer.start()

    def lines(self) -> list[str]:
        """Return the lines, without their times."""
        self.observer.finish()
        self.observer.writer.stop()
        return [line.partition("Z ")[2] for line in self.sink.data.decode().splitlines()]


@pytest.fixture
def logged() -> Any:
    found = Logged()
    globalLogPublisher.addObserver(found.observer)
    yield found
    globalLogPublisher.removeObserver(found.observer)


def context() -> RequestContext:
    found = RequestContext(Peer("192.0.2.1", False), 0.0)
    found.request_id = b"r1"
    return found


PLACE = "[twisted_vllm.proxy.server_failures]"


def test_a_failure_names_request_server_cause_and_what_follows(logged: Logged) -> None:
    log_failure(context(), "gpu-1:8000", "status_502", ANSWERED)
    log_failure(context(), "gpu-1:8000", UpstreamTimeout.code, RETRIED, UpstreamTimeout("It took too long."))
    assert logged.lines() == [
        f"warn  {PLACE} Request r1 failed at gpu-1:8000 and the client gets the error: status_502",
        f"warn  {PLACE} Request r1 failed at gpu-1:8000 and is tried again: upstream_timeout, It took too long.",
    ]


def test_a_thousand_failures_are_one_line_with_their_number(logged: Logged) -> None:
    for number in range(1000):
        logged.now = number / 1000
        log_failure(context(), "gpu-1:8000", "status_502", ANSWERED)
        log_failure(context(), "gpu-2:8000", "status_500", RETRIED)
    found = logged.lines()
    assert len(found) == 4
    left_out = [line for line in found if "Lines left out: 999" in line]
    assert [line.startswith("warn") for line in left_out] == [True, True]
    assert "gpu-1:8000 status_502" in left_out[0] and "gpu-2:8000 status_500" in left_out[1]


def test_what_the_connection_has_said_is_not_said_twice(logged: Logged) -> None:
    error = with_words(UpstreamUnreachable("The vLLM server cannot be reached."), "it refuses connections")
    log_failure(context(), "gpu-1:8000", error.code, RETRIED, error)
    assert logged.lines() == []


def test_a_model_without_a_server_is_named(logged: Logged) -> None:
    log_nowhere("llama", NoHealthyUpstream("No server of this model can answer at present."))
    log_nowhere("", ServerBusy("The queue is full."))
    assert logged.lines() == [
        f"warn  {PLACE} No server takes requests for llama: No server of this model can answer at present.",
        f"warn  {PLACE} No server takes requests for the default server: The queue is full.",
    ]
