"""Servers are asked for their load."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.error import ConnectionRefusedError
from twisted.logger import capturedLogs

from tests.upstreams.test_health_checks import INTERVAL, SETTINGS, Fleet
from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.upstreams.load_scraper import PATH, LoadScraper

SCRAPING = attrs.evolve(SETTINGS, scrape_metrics=True)


def report(waiting: int, usage: float) -> tuple[int, bytes]:
    return 200, b'vllm:num_requests_waiting{engine="0"} %d\nvllm:kv_cache_usage_perc{engine="0"} %f\n' % (
        waiting,
        usage,
    )


class Scraped(Fleet):
    """Servers that are asked for their load."""

    def __init__(self, count: int = 1, settings: Any = SCRAPING) -> None:
        super().__init__(count, settings)
        self.scraper = LoadScraper(self.states, self.prober, self.clock, settings)  # type: ignore[arg-type]  # only `get` is called
        self.scraper.start()


def loads(fleet: Scraped) -> list[tuple[float, float]]:
    return [(state.waiting, state.kv_usage) for state in fleet.states]


def test_each_server_is_asked_once_in_an_interval() -> None:
    fleet = Scraped(4)
    fleet.answer(report(3, 0.5), PATH)
    fleet.answer(report(1, 0.25), PATH, "gpu-2:8000")
    fleet.run(10 * INTERVAL)
    assert loads(fleet)[:2] == [(3.0, 0.5), (1.0, 0.25)]
    for number in range(1, 5):
        assert len(fleet.prober.times(f"gpu-{number}:8000", PATH)) == 10
    times = [at for at, _, path in fleet.prober.asked if path == PATH]
    assert len(set(times)) == len(times), "never two at once"


def test_a_server_that_does_not_tell_has_no_load_and_one_line_of_the_log() -> None:
    fleet = Scraped()
    fleet.answer(report(3, 0.5), PATH)
    fleet.run(INTERVAL)
    with capturedLogs() as events:
        for silence in (404, ConnectionRefusedError(), (200, b"no metrics"), "frozen"):
            fleet.answer(silence, PATH)
            fleet.run(2 * INTERVAL)
            assert loads(fleet) == [(0.0, 0.0)]
        fleet.answer(report(2, 0.5), PATH)
        fleet.run(INTERVAL)
    assert loads(fleet) == [(2.0, 0.5)]
    assert [event["log_level"].name for event in events] == ["warn", "info"]
    assert fleet.one.breaker.closed, "that is for the checks to decide"


def test_a_server_that_gets_no_requests_is_not_asked_and_what_it_said_is_forgotten() -> None:
    fleet = Scraped()
    fleet.answer(report(3, 0.5), PATH)
    fleet.run(INTERVAL)
    fleet.one.breaker.declare_dead(0.0, "timeout", 0.0)
    fleet.answer("frozen")
    asked = len(fleet.prober.times("gpu-1:8000", PATH))
    fleet.run(3 * INTERVAL)
    assert loads(fleet) == [(0.0, 0.0)]
    assert len(fleet.prober.times("gpu-1:8000", PATH)) == asked


def test_a_drained_server_is_asked_on() -> None:
    fleet = Scraped()
    hits = b"vllm:num_requests_running 2\nvllm:prefix_cache_queries_total %d\nvllm:prefix_cache_hits_total %d\n"
    fleet.one.drained = DrainedServer("http://gpu-1:8000")
    fleet.answer((200, report(0, 0.5)[1] + hits % (100, 0)), PATH)
    fleet.run(INTERVAL)
    assert (fleet.one.running, fleet.one.cache_hits) == (2.0, None)
    fleet.answer((200, report(0, 0.5)[1] + hits % (200, 75)), PATH)
    fleet.run(INTERVAL)
    assert fleet.one.cache_hits == 0.75


def test_it_begins_and_ends_with_the_settings() -> None:
    fleet = Scraped(settings=SETTINGS)
    fleet.answer(report(3, 0.5), PATH)
    fleet.run(3 * INTERVAL)
    assert loads(fleet) == [(0.0, 0.0)]
    fleet.scraper.update(SCRAPING)
    fleet.run(INTERVAL)
    assert loads(fleet) == [(3.0, 0.5)]
    fleet.scraper.update(SETTINGS)
    assert loads(fleet) == [(0.0, 0.0)]
    asked = len(fleet.prober.times("gpu-1:8000", PATH))
    fleet.run(3 * INTERVAL)
    assert len(fleet.prober.times("gpu-1:8000", PATH)) == asked


def test_servers_come_and_go() -> None:
    fleet = Scraped(2)
    fleet.answer(report(3, 0.5), PATH, "gpu-3:8000")
    fleet.run(INTERVAL)
    del fleet.states[:]
    fleet.run(INTERVAL)
    fleet.states.append(fleet.make("gpu-3:8000"))
    fleet.run(INTERVAL)
    assert loads(fleet) == [(3.0, 0.5)]


def test_it_stops_with_what_it_waits_for() -> None:
    fleet = Scraped()
    fleet.answer("frozen", PATH)
    fleet.run(INTERVAL)
    fleet.checks.stop()
    fleet.scraper.stop()
    assert fleet.clock.getDelayedCalls() == []
    fleet.scraper.stop()
