"""One row for each server, of all processes."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.admin.admin_harness import value_of
from tests.proxy.gateway_fakes import server
from tests.upstreams.fleets import make_router
from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.config.settings import ModelEntry
from twisted_vllm.upstreams.server_report import (
    PATIENCE,
    UNCONFIGURED,
    Figures,
    ServerFigures,
    ServerReports,
    ServerRow,
)

ONE, TWO = server("one:1"), server("two:2")


class Models:
    """What servers say of their models.

    Attributes:
        asking: fires when they have answered.
    """

    def __init__(self) -> None:
        self.asking: Deferred[None] = succeed(None)
        self.asked: list[list[str]] = []
        self.cards_of: dict[str, dict[str, Any]] = {}

    def refresh(self, servers: Any) -> Deferred[None]:
        self.asked.append([each.name for each in servers])
        return self.asking

    def answers(self, server: Any) -> bool:
        return server.name in self.cards_of

    def cards(self, server: Any) -> dict[str, Any]:
        return self.cards_of[server.name]


class Fleet:
    """Two servers, which share one of two models."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.models = Models()
        entries = [ModelEntry("m", "m", ONE), ModelEntry("m", "own", TWO), ModelEntry("n", "n", ONE)]
        self.router = make_router(entries, None, fallbacks={"n": ("m",)})
        self.reports = ServerReports(self.router, cast(Any, self.models), self.clock)

    def rows(self, **options: Any) -> list[ServerRow]:
        found: list[ServerRow] = value_of(self.reports.rows(**options))
        return found

    def state(self, name: str) -> Any:
        return self.router.servers.named(name)


def test_a_row_tells_what_is_known_of_a_server() -> None:
    fleet = Fleet()
    state = fleet.state("one:1")
    state.in_flight, state.version, state.running, state.cache_hits = 3, "0.11.0", 2.0, 0.5
    state.latency.observe(0.25, 0.0)
    state.breaker.count("timeout")
    fleet.models.cards_of["one:1"] = {"m": {}, "n": {}}
    one, two = fleet.rows()
    assert (one.server, one.address, one.state, one.gets_requests) == ("one:1", "http://one:1", "closed", True)
    assert (one.in_flight, one.version, one.running, one.waiting, one.cache_hits) == (3, "0.11.0", 2.0, 0.0, 0.5)
    assert (one.latency, one.errors, one.served) == (0.25, {"timeout": 1}, ("m", "n"))
    assert [(each.model_name, each.model, each.others, each.fallbacks) for each in one.entries] == [
        ("m", "m", 1, ()),
        ("n", "n", 0, ("m",)),
    ]
    assert (two.latency, two.errors, two.served, two.running, two.waiting) == (None, {}, None, None, None)
    assert fleet.models.asked == [["one:1", "two:2"]]


def test_what_other_processes_counted_is_added() -> None:
    fleet = Fleet()
    fleet.state("one:1").latency.observe(0.2, 0.0)
    fleet.state("one:1").breaker.count("timeout")
    others = [
        Figures([ServerFigures(b"http://one:1", 0.4, {"timeout": 2, "status_503": 1})], {"m": 4, "n": 1}),
        Figures([ServerFigures(b"http://gone:1", 9.0, {})], {"m": 2}),
    ]
    fleet.reports.ask_others = lambda: succeed(others)
    one, two = fleet.rows()
    assert one.latency is not None
    assert round(one.latency, 6) == 0.3
    assert one.errors == {"timeout": 3, "status_503": 1}
    assert (one.queued, two.queued) == (7, 6)


def test_the_answer_does_not_wait_long_for_a_server_that_hangs() -> None:
    fleet = Fleet()
    fleet.models.asking = Deferred()
    found: list[Any] = []
    fleet.reports.rows().addCallback(found.append)
    assert found == []
    fleet.clock.advance(PATIENCE)
    assert len(found[0]) == 2
    # its answer comes later, and breaks nothing
    fleet.models.asking.callback(None)
    assert len(fleet.rows(refresh=False)) == 2
    assert len(fleet.models.asked) == 1


def test_a_drained_server_stays_in_the_list_when_it_leaves_the_configuration() -> None:
    fleet = Fleet()
    drained = DrainedServer("http://gone:9", "moved", 5.0, "ada")
    fleet.router.servers.set_drained([drained, DrainedServer("http://two:2", "", 7.0, "ada")])
    one, two, gone = fleet.rows()
    assert (two.state, two.reason, two.since, two.gets_requests) == ("drained", "drained", 7.0, False)
    assert (gone.server, gone.state, gone.configured, gone.drained) == ("gone:9", UNCONFIGURED, False, drained)
    assert one.entries[0].others == 0
    assert fleet.reports.find("gone:9") == fleet.reports.find("http://gone:9") == "http://gone:9"
    assert fleet.reports.find("two:2") == "http://two:2"
    assert fleet.reports.find("nobody:1") is None


def test_a_dead_server_that_is_drained_is_dead_first() -> None:
    fleet = Fleet()
    fleet.router.servers.set_drained([DrainedServer("http://two:2")])
    fleet.state("two:2").breaker.declare_dead(3.0, "timeout", 8.0)
    _, two = fleet.rows()
    assert (two.state, two.reason, two.next_try) == ("dead", "timeout", 8.0)
    assert two.drained is not None
    # only those that are well are asked for their models
    assert fleet.models.asked == [["one:1"]]
