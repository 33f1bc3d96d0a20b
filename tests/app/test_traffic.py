"""What passed of late, of one process and of several."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.admin.admin_harness import value_of
from tests.end_to_end.end_to_end_harness import eventually
from tests.observability.metrics.contexts import refused, request
from tests.workers.connected import Connected, connected
from twisted_vllm.app.traffic import Traffic
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.metrics.model_names import ModelNames
from twisted_vllm.observability.metrics.requests import RequestMetrics
from twisted_vllm.workers.siblings import ALONE, Siblings

#: a Unix time that begins a minute
START = 1_000_020.0


class Process:
    """The traffic of one process."""

    def __init__(self, clock: Clock, siblings: Siblings = ALONE) -> None:
        self.in_flight = 0
        self.counted = RequestMetrics(ModelNames(ClientText(str)))
        self.traffic = Traffic(siblings, clock, lambda: self.in_flight)
        self.traffic.follow(self.counted)
        self.traffic.start()

    def serve(self, requests: int) -> None:
        for _ in range(requests):
            self.counted.finished(request(stream=True))

    def report(self, seconds: int = 300) -> Any:
        return json.loads(value_of(self.traffic.report(seconds)))


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(START)
    return clock


@pytest.fixture
def processes(reactor: Any) -> Iterator[Connected]:
    found = connected(reactor)
    yield found
    found.close()


def test_what_passes_is_in_the_answer_seconds_later(clock: Clock) -> None:
    process = Process(clock)
    process.in_flight = 2
    process.serve(10)
    process.counted.finished(refused("draining"))
    clock.advance(5.1)
    clock.advance(1)
    found = process.report()
    assert (found["now"]["in_flight"], found["now"]["requests"], found["now"]["failed"]) == (2, 11, 1)
    assert found["now"]["output_tokens"] == 210
    assert [(each["cause"], each["by"], each["count"]) for each in found["errors"]] == [("draining", "gateway", 1)]
    assert [each["model"] for each in found["models"]] == ["qwen", "other"]
    assert found["series"]["requests_per_second"][-1] == 2.2
    assert found["of_one_process"] is False
    process.traffic.stop()
    assert clock.getDelayedCalls() == []


def test_a_report_is_made_once_for_all_who_look_until_the_next_step(clock: Clock) -> None:
    process = Process(clock)
    clock.advance(7)
    first = value_of(process.traffic.report(300))
    process.serve(3)
    clock.advance(3)
    assert value_of(process.traffic.report(300)) is first
    clock.advance(1)
    assert json.loads(value_of(process.traffic.report(300)))["summary"]["requests"] == 3
    process.traffic.stop()


def test_a_report_can_begin_at_a_time(clock: Clock) -> None:
    process = Process(clock)
    for _ in range(12):
        process.serve(1)
        clock.advance(5.01)
    clock.advance(2)
    found = json.loads(value_of(process.traffic.report(0, START + 30)))
    assert found["start"] == "1970-01-12T13:47:30Z"
    assert found["summary"]["requests"] == 6
    process.traffic.stop()


def test_a_pause_of_the_process_loses_nothing(clock: Clock) -> None:
    process = Process(clock)
    process.serve(4)
    clock.advance(47)
    clock.advance(6)
    assert process.report()["summary"]["requests"] == 4
    process.traffic.stop()


async def test_whichever_process_is_asked_the_answer_is_that_of_all(
    processes: Connected, clock: Clock, reactor: Any
) -> None:
    links = [await processes.ready(number, number) for number in range(3)]
    found = [Process(clock, link) for link in links]
    for number, each in enumerate(found[1:], 1):
        each.serve(number)
        each.in_flight = number
    clock.advance(5.1)
    await eventually(reactor, lambda: sum(each.in_flight for each in _steps(found[0])) == 3)
    clock.advance(1.5)
    answers = [json.loads(await each.traffic.report(300)) for each in found]
    assert answers[0] == answers[1] == answers[2]
    assert (answers[0]["now"]["requests"], answers[0]["now"]["in_flight"]) == (3, 3)
    for each in found:
        each.traffic.stop()


async def test_what_a_worker_counted_outlives_it_and_a_new_housekeeper_learns_what_the_workers_know(
    processes: Connected, clock: Clock, reactor: Any
) -> None:
    links = [await processes.ready(number, number) for number in range(3)]
    housekeeper, first, second = (Process(clock, link) for link in links)
    first.serve(5)
    second.serve(7)
    clock.advance(5.1)
    await eventually(reactor, lambda: _requests(housekeeper) == 12)
    links[2].close()
    second.traffic.stop()
    await eventually(reactor, lambda: len(links[1].others) == 1)
    clock.advance(1.5)
    assert json.loads(await first.traffic.report(300))["summary"]["requests"] == 12
    # the housekeeper ends
    links[0].close()
    housekeeper.traffic.stop()
    await eventually(reactor, lambda: not links[1].others)
    clock.advance(5)
    alone = json.loads(await first.traffic.report(300))
    assert (alone["of_one_process"], alone["summary"]["requests"]) == (True, 5)
    clock.advance(60)
    link = processes.start(10, 0)
    replaced = Process(clock, link)
    link.ready()
    await eventually(reactor, lambda: _requests(replaced) == 5)
    clock.advance(5)
    found = json.loads(await first.traffic.report(300))
    assert (found["of_one_process"], found["summary"]["requests"]) == (False, 5)
    # it knows what the worker knows, from when the worker began
    assert found["complete_since"] == alone["complete_since"]
    for each in (first, replaced):
        each.traffic.stop()


def _steps(process: Process) -> list[Any]:
    return list(process.traffic.history.fine.between(0, 1 << 40))


def _requests(process: Process) -> int:
    return sum(each.total().requests for each in _steps(process))


def test_the_series_of_a_long_period_is_made_seldom_and_what_is_called_now_with_each_step(clock: Clock) -> None:
    process = Process(clock)
    clock.advance(60)
    before = process.report(86_400)
    process.serve(30)
    clock.advance(7)
    soon = process.report(86_400)
    assert (before["summary"]["requests"], soon["summary"]["requests"]) == (0, 0)
    assert (before["now"]["requests"], soon["now"]["requests"]) == (0, 30)
    clock.advance(30)
    assert process.report(86_400)["summary"]["requests"] == 30
    process.traffic.stop()
