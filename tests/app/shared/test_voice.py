"""Metrics, readiness and the log's level of several processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel

from tests.end_to_end.end_to_end_harness import eventually
from tests.observability.memory_sink import MemorySink
from tests.workers.connected import Connected, connected
from twisted_vllm.admin.context import Readiness
from twisted_vllm.app.processes import metrics_keeper
from twisted_vllm.app.processes.metrics_keeper import OWN, MetricsKeeper
from twisted_vllm.app.shared.log_level import SharedLogLevel
from twisted_vllm.app.shared.metrics import SharedMetrics
from twisted_vllm.app.shared.readiness import SharedReadiness
from twisted_vllm.observability.logging.level import LogLevels
from twisted_vllm.observability.logging.lines import TextLines
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.writer import LogWriter
from twisted_vllm.observability.metrics.messages import Family
from twisted_vllm.observability.metrics.registry import Metrics
from twisted_vllm.workers.link import Link

SERVED = 'vllm_passthrough_served_total{server="gpu"}'


@pytest.fixture
def processes(reactor: Any) -> Iterator[Connected]:
    found = connected(reactor)
    yield found
    found.close()


class Served:
    """What a process counts."""

    count = 0

    def collect(self) -> list[Metric]:
        counted = CounterMetricFamily("vllm_passthrough_served", "Requests.", labels=["server"])
        counted.add_metric(["gpu"], self.count)
        return [counted, GaugeMetricFamily("vllm_passthrough_connections", "Connections.", self.count)]


class OfSupervisor:
    """The supervisor's own metrics."""

    def families(self, answered: int, ready: int) -> list[Family]:
        row = (("answered", "ready", str(ready)), 0, [float(answered)])
        return [Family("answered", "Processes.", "gauge", is_open=True, form="samples", labels=(), rows=[row])]


class Process:
    """A process with metrics."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.served = Served()
        metrics = Metrics()
        metrics.add(self.served)
        self.now = 0.0
        self.shared = SharedMetrics(metrics, link, lambda: self.now)

    async def samples(self, named: bool = True) -> dict[str, float]:
        self.now += 100.0
        text, _ = await self.shared.expose("", named)
        lines = [line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}


async def three(processes: Connected, reactor: Any) -> list[Process]:
    MetricsKeeper(processes.hub, OfSupervisor(), reactor)
    found = []
    for number in range(3):
        link = processes.start(10 + number, number)
        found.append(Process(link))
        link.ready()
    await eventually(reactor, lambda: all(len(each.link.others) == 2 for each in found))
    for each, count in zip(found, (1, 10, 100), strict=True):
        each.served.count = count
    return found


async def test_every_process_tells_the_sum_of_all(processes: Connected, reactor: Any) -> None:
    for each in await three(processes, reactor):
        found = await each.samples()
        assert found[SERVED] == found["vllm_passthrough_connections"] == 111
        assert found['answered{ready="3"}'] == 3


async def test_the_housekeeper_exports_what_all_counted(processes: Connected, reactor: Any) -> None:
    housekeeper, *_ = await three(processes, reactor)
    snapshot = await housekeeper.shared.snapshot(5.0)
    figures = {sample.name: sample.value for family in snapshot.families for sample in family.samples}
    assert (snapshot.time, figures["vllm_passthrough_served_total"]) == (5.0, 111)


async def test_what_was_told_is_not_taken_back_when_a_process_ends(processes: Connected, reactor: Any) -> None:
    housekeeper, _, worker = await three(processes, reactor)
    assert (await housekeeper.samples())[SERVED] == 111
    worker.served.count = 150
    worker.link.close()
    await eventually(reactor, lambda: 12 not in processes.hub.ready)
    found = await housekeeper.samples()
    # it was killed: what it counted since the last collection is lost
    assert (found[SERVED], found["vllm_passthrough_connections"]) == (111, 11)


async def test_a_process_that_ends_by_itself_tells_all_that_it_counted(processes: Connected, reactor: Any) -> None:
    housekeeper, _, worker = await three(processes, reactor)
    worker.served.count = 150
    worker.shared.tell_last()
    worker.link.close()
    await eventually(reactor, lambda: 12 not in processes.hub.ready)
    assert (await housekeeper.samples())[SERVED] == 161


async def test_a_process_that_does_not_answer_counts_as_it_last_did(
    processes: Connected, reactor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_keeper, "ANSWER_SECONDS", 0.1)
    housekeeper, worker, _ = await three(processes, reactor)
    assert (await housekeeper.samples())[SERVED] == 111
    late: Any = processes.links[12]
    never: Deferred[None] = Deferred()
    late._topics._answerers[OWN] = late._topics._answerers[OWN][0], lambda question, asker: never
    worker.served.count = 20
    found = await housekeeper.samples()
    assert (found[SERVED], found["vllm_passthrough_connections"]) == (121, 21)
    assert found['answered{ready="3"}'] == 2


async def test_strangers_get_the_same_numbers_from_every_process(processes: Connected, reactor: Any) -> None:
    for each in await three(processes, reactor):
        found = await each.samples(named=False)
        assert found['vllm_passthrough_served_total{server="1"}'] == 111
        assert not any("gpu" in name for name in found)


async def test_those_who_ask_at_once_and_soon_after_get_one_collection(processes: Connected, reactor: Any) -> None:
    _, worker, _ = await three(processes, reactor)
    first, second = worker.shared.expose(""), worker.shared.expose("", named=True)
    assert b"111.0" in (await first)[0] and b"111.0" in (await second)[0]
    worker.served.count += 1
    assert b"111.0" in (await worker.shared.expose("", named=True))[0]
    assert (await worker.samples())[SERVED] == 112


async def test_without_a_supervisor_a_process_tells_its_own(processes: Connected, reactor: Any) -> None:
    _, worker, _ = await three(processes, reactor)
    processes.hub.close(11)
    await eventually(reactor, lambda: not worker.link.others)
    found = await worker.samples()
    assert found[SERVED] == 10


async def test_the_gateway_is_as_ready_as_the_process_that_has_least(processes: Connected, reactor: Any) -> None:
    has = [True, True]
    links = [processes.start(number, number) for number in range(2)]
    shared = [
        SharedReadiness(lambda at=at: Readiness(draining=at == 1, database=has[at]), link, reactor)  # type: ignore[misc]
        for at, link in enumerate(links)
    ]
    for link, each in zip(links, shared, strict=True):
        link.ready()
        each.start()
    await eventually(reactor, lambda: all(link.others for link in links))
    assert shared[0].whole() == Readiness(draining=False, database=True)
    has[1] = False
    await eventually(reactor, lambda: not shared[0].whole().database)
    # another that drains is replaced
    assert not shared[0].whole().draining and shared[1].whole().draining
    links[1].close()
    await eventually(reactor, lambda: shared[0].whole().database)
    for each in shared:
        each.stop()


async def test_a_level_of_the_log_reaches_all_processes_and_those_that_join(processes: Connected, reactor: Any) -> None:
    def start(number: int) -> tuple[LineObserver, LogLevels]:
        lines = TextLines()
        observer = LineObserver(LogWriter(MemorySink(), lines.dropped), lines)
        levels = LogLevels(observer, reactor)
        link = processes.start(number, number)
        levels.share = SharedLogLevel(levels, link, reactor).share
        link.ready()
        return observer, levels

    first, second = start(0), start(1)
    await eventually(reactor, lambda: all(link.others for link in processes.links.values()))
    first[1].change("debug", 60.0, "ada")
    assert first[1].share is not None
    assert await first[1].share("debug", 60.0, "ada") == []
    assert second[0].level == LogLevel.debug.name
    late = start(2)
    await eventually(reactor, lambda: late[0].level == LogLevel.debug.name)
    ends = late[1].in_effect.ends
    assert ends is not None and 50 < ends - reactor.seconds() <= 60
    for _, levels in (first, second, late):
        levels.stop()
