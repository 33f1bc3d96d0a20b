"""Which server a request goes to, what waits for room, and that no place is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.counted_calls import calls_of
from tests.proxy.gateway_fakes import server
from tests.upstreams.fleets import make_router
from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import ModelEntry, RoutingSettings, Server
from twisted_vllm.errors import GatewayError, NoHealthyUpstream, ServerBusy, UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.net.deadlines import INTERVAL, DeadlineSweeper
from twisted_vllm.upstreams.dispatcher import DRAINED_RETRY, Ask, Dispatcher, Placement


def capped(
    limit: int | None = 1, places: int = 100, seconds: float | None = 30.0, name: str = "gpu-1:8000", **options: Any
) -> Server:
    found = attrs.evolve(server(name), **options)
    timeouts = attrs.evolve(found.timeouts, queue=seconds)
    return attrs.evolve(found, max_concurrent_requests=limit, max_queued_requests=places, timeouts=timeouts)


#: calls to place a request on one of two servers, with a few to spare: a call for each server and question is too much
MOST_CALLS, MOST_CALLS_OF_PREFIX = 28, 52


class Asked:
    """A request, and what became of it.

    Attributes:
        placement: where it is, once it is placed.
        error: what refused it.
        on_placed: called when it is placed after it waited.
    """

    def __init__(self, fleet: Fleet, ask: Ask, model: str) -> None:
        self.placement: Placement | None = None
        self.error: BaseException | None = None
        self.on_placed: Callable[[], None] = lambda: None
        self._waiting: Deferred[Placement] | None = None
        try:
            found = fleet.dispatcher.place(fleet.router.find(model), ask)
        except GatewayError as error:
            self.error = error
            return
        if isinstance(found, Placement):
            self.placement = found
        else:
            self._waiting = found
            found.addCallbacks(self._placed, self._refused)

    @property
    def where(self) -> str:
        """Its server; empty if it has none."""
        return "" if self.placement is None else self.placement.destination.server.name

    @property
    def waits(self) -> bool:
        return self.placement is None and self.error is None

    def end(self) -> None:
        """Its exchange with the server is over."""
        assert self.placement is not None
        self.placement.ended()

    def leave(self) -> None:
        """Its client leaves while it waits."""
        assert self._waiting is not None
        self._waiting.cancel()

    def _placed(self, placement: Placement) -> None:
        self.placement = placement
        self.on_placed()

    def _refused(self, failure: Failure) -> None:
        self.error = failure.value


class Fleet:
    """A dispatcher before servers; a server of ``model_list`` is given as an entry."""

    def __init__(self, *servers: Server | ModelEntry, default: Server | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.deadlines = DeadlineSweeper(self.clock)
        self.dispatcher = Dispatcher(self.deadlines)
        entries = [each if isinstance(each, ModelEntry) else ModelEntry("m", "m", each) for each in servers]
        self.router = make_router(entries, default)

    def ask(self, key: str = "a", priority: int = 0, model: str = "m", **options: Any) -> Asked:
        return Asked(self, Ask(key, priority, **options), model)

    def configure(self, *servers: Server, default: Server | None = None) -> None:
        """Let a model have other servers."""
        self.router.update([ModelEntry("m", "m", each) for each in servers], default, RoutingSettings())
        self.dispatcher.regroup()

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds / INTERVAL)):
            self.clock.advance(INTERVAL)
            self.deadlines.sweep()

    def break_server(self, name: str) -> None:
        state = self.router.servers.named(name)
        assert state is not None
        state.breaker.declare_dead(self.clock.seconds(), "connect_refused", self.clock.seconds() + 5.0)

    def mend_server(self, name: str) -> None:
        state = self.router.servers.named(name)
        assert state is not None
        state.breaker.declare_alive(self.clock.seconds())
        self.dispatcher.serve()

    def assert_idle(self) -> None:
        """No place is taken and nothing waits."""
        assert len(self.dispatcher) == len(self.deadlines) == 0
        assert [state.in_flight for state in self.router.servers if state.in_flight] == []


def names(asked: list[Asked]) -> list[str]:
    return [each.where for each in asked]


def test_a_server_without_a_limit_takes_everything() -> None:
    fleet = Fleet(default=server())
    asked = [fleet.ask() for _ in range(500)]
    assert set(names(asked)) == {"gpu-1:8000"}


@pytest.mark.parametrize("strategy", ["least-busy", "prefix"])
def test_to_place_a_request_on_one_of_two_servers_that_are_well_takes_few_calls(strategy: str) -> None:
    dispatcher = Dispatcher(DeadlineSweeper(Clock()))
    entries = [ModelEntry("m", "m", server(name)) for name in ("gpu-1:8000", "gpu-2:8000")]
    group, ask = make_router(entries, None, strategy).find("m"), Ask("a")
    placed = dispatcher.place(group, ask)
    assert isinstance(placed, Placement)
    placed.ended()
    calls = calls_of(lambda: dispatcher.place(group, ask))
    assert calls <= {"least-busy": MOST_CALLS, "prefix": MOST_CALLS_OF_PREFIX}[strategy]


def test_only_the_policy_that_reads_latencies_is_told_them() -> None:
    for strategy, quickest in (("latency-based-routing", "gpu-2:8000"), ("least-busy", "gpu-1:8000")):
        dispatcher = Dispatcher(DeadlineSweeper(Clock()))
        entries = [ModelEntry("m", "m", server(name)) for name in ("gpu-1:8000", "gpu-2:8000")]
        group = make_router(entries, None, strategy, lambda: 0.05).find("m")
        for each, seconds in zip(group.destinations, (5.0, 0.1), strict=True):
            each.state.latency.observe(seconds, 0.0)
        placed = dispatcher.place(group, Ask())
        assert isinstance(placed, Placement)
        assert placed.destination.server.name == quickest, strategy


def test_what_is_over_the_limit_is_placed_in_turn_as_others_end() -> None:
    fleet = Fleet(capped(2))
    first, second, third, fourth = (fleet.ask() for _ in range(4))
    assert (third.waits, fourth.waits, len(fleet.dispatcher)) == (True, True, 2)
    second.end()
    assert (third.waits, fourth.waits) == (False, True)
    second.end()
    assert fourth.waits, "a place was freed twice"
    first.end()
    assert fourth.where == "gpu-1:8000"
    third.end()
    fourth.end()
    fleet.assert_idle()


def test_requests_wait_once_for_all_servers_of_a_model_and_go_to_the_first_that_has_room() -> None:
    fleet = Fleet(capped(1, name="one:1"), capped(1, name="two:2"))
    first, second, third, fourth = (fleet.ask() for _ in range(4))
    assert {first.where, second.where} == {"one:1", "two:2"}
    second.end()
    assert third.where == second.where
    third.end()
    assert fourth.where == second.where


def test_the_queue_is_as_long_as_those_of_its_servers_together() -> None:
    fleet = Fleet(capped(1, places=1, name="one:1"), capped(1, places=2, name="two:2"))
    asked = [fleet.ask() for _ in range(6)]
    assert [each.waits for each in asked] == [False, False, True, True, True, False]
    assert isinstance(asked[-1].error, ServerBusy)
    assert (asked[-1].error.status, asked[-1].error.code) == (503, "server_busy")


def test_the_first_that_leaves_the_queue_is_the_most_urgent_and_then_another_key_s() -> None:
    fleet = Fleet(capped(1))
    first = fleet.ask("a")
    burst = [fleet.ask("a") for _ in range(10)]
    other = fleet.ask("b")
    urgent = fleet.ask("c", -1)
    first.end()
    assert urgent.where
    urgent.end()
    following = [each for each in (burst[0], other) if each.where]
    assert len(following) == 1
    following[0].end()
    assert burst[0].where
    assert other.where
    assert all(each.waits for each in burst[1:])


def test_a_burst_does_not_keep_another_key_out_of_a_full_queue() -> None:
    fleet = Fleet(capped(1, places=4))
    fleet.ask("a")
    burst = [fleet.ask("a") for _ in range(6)]
    other = fleet.ask("b")
    assert other.waits
    assert [each.waits for each in burst] == [True, True, True, False, False, False]
    assert all(isinstance(each.error, ServerBusy) for each in burst[3:])


def test_a_refused_request_is_told_when_the_queue_will_have_room() -> None:
    fleet = Fleet(capped(2, places=20))
    running = [fleet.ask() for _ in range(2)]
    # one a second leaves
    for _ in range(10):
        fleet.clock.advance(2)
        for each in running:
            each.end()
        running = [fleet.ask() for _ in range(2)]
    asked = [fleet.ask() for _ in range(25)]
    told = [each.error.retry_after or 0 for each in asked if isinstance(each.error, ServerBusy)]
    assert len(told) == 5
    assert told == pytest.approx([21, 22, 23, 24, 25], abs=4)
    assert told == sorted(told)


def test_what_has_waited_too_long_is_refused_and_frees_nothing() -> None:
    fleet = Fleet(capped(1, seconds=30.0))
    first, second = fleet.ask(), fleet.ask()
    fleet.pass_time(29)
    third = fleet.ask()
    assert second.waits
    fleet.pass_time(2)
    assert isinstance(second.error, ServerBusy)
    first.end()
    assert third.where
    fleet.pass_time(1000)
    assert third.error is None


def test_without_a_limit_of_time_it_waits_for_ever() -> None:
    fleet = Fleet(capped(1, seconds=None), capped(1, seconds=5.0, name="two:2"))
    first, _, third = fleet.ask(), fleet.ask(), fleet.ask()
    fleet.pass_time(1_000)
    first.end()
    assert third.where
    assert third.placement is not None
    assert third.placement.queued == pytest.approx(1_000, abs=1)


def test_a_client_that_leaves_gives_up_its_place() -> None:
    fleet = Fleet(capped(1, places=1))
    first, second = fleet.ask(), fleet.ask()
    second.leave()
    assert isinstance(second.error, CancelledError)
    third = fleet.ask()
    assert third.waits
    first.end()
    assert third.where
    third.end()
    fleet.assert_idle()


def test_what_fails_at_once_makes_room_for_all_that_wait() -> None:
    fleet = Fleet(capped(1, places=2000))
    first, *others = (fleet.ask() for _ in range(2000))
    for each in others:
        each.on_placed = each.end
    first.end()
    assert all(each.where for each in others)
    fleet.assert_idle()


def test_one_that_is_given_up_while_its_turn_comes_takes_no_place() -> None:
    fleet = Fleet(capped(1))
    first, second, third, fourth = (fleet.ask() for _ in range(4))

    def end_and_leave() -> None:
        second.end()
        third.leave()

    second.on_placed = end_and_leave
    first.end()
    assert isinstance(third.error, CancelledError)
    assert fourth.where
    fourth.end()
    fleet.assert_idle()


def test_entries_of_one_address_share_its_places_whatever_their_keys_and_models() -> None:
    one = capped(1)
    same = attrs.evolve(one, api_key=Secret("another"))
    below = attrs.evolve(one, base_path=b"/other")
    fleet = Fleet(ModelEntry("a", "a", one), ModelEntry("b", "b", same), ModelEntry("c", "c", below))
    first, second, third = fleet.ask(model="a"), fleet.ask(model="b"), fleet.ask(model="c")
    assert (first.waits, second.waits, third.waits) == (False, True, False)
    first.end()
    assert second.where


def test_models_that_share_a_server_take_turns() -> None:
    one = capped(1)
    fleet = Fleet(ModelEntry("a", "a", one), ModelEntry("b", "b", one))
    running = fleet.ask(model="a")
    waiting = [fleet.ask(model="a") for _ in range(4)] + [fleet.ask(model="b") for _ in range(4)]
    order = []
    for _ in range(8):
        running.end()
        [running] = [each for each in waiting if each.where and each not in order]
        order.append(running)
    models = [each.placement.group.name for each in order if each.placement is not None]
    assert models in (["a", "b"] * 4, ["b", "a"] * 4)


def test_a_request_does_not_go_where_it_failed_and_those_behind_it_need_not_wait() -> None:
    fleet = Fleet(capped(1, name="one:1"), capped(1, name="two:2"))
    first, second = fleet.ask(), fleet.ask()
    one = next(each for each in (first, second) if each.where == "one:1")
    assert one.placement is not None
    again = fleet.ask(tried=(one.placement.destination.state,))
    behind = fleet.ask()
    one.end()
    assert (again.waits, behind.where) == (True, "one:1")
    next(each for each in (first, second) if each is not one).end()
    assert again.where == "two:2"


def test_a_request_waits_for_the_server_that_has_what_it_continues() -> None:
    two = capped(1, name="two:2")
    fleet = Fleet(capped(1, name="one:1"), two)
    first, second = fleet.ask(), fleet.ask()
    bound = fleet.ask(server=two)
    by_name = {each.where: each for each in (first, second)}
    by_name["one:1"].end()
    assert bound.waits
    by_name["two:2"].end()
    assert bound.where == "two:2"


def test_while_all_servers_are_dead_nothing_waits() -> None:
    fleet = Fleet(capped(1))
    first, second = fleet.ask(), fleet.ask()
    fleet.break_server("gpu-1:8000")
    fleet.pass_time(1)
    assert isinstance(second.error, NoHealthyUpstream)
    third = fleet.ask()
    assert isinstance(third.error, NoHealthyUpstream)
    assert 1 <= (third.error.retry_after or 0) <= 60
    first.end()
    fleet.assert_idle()


def test_what_waits_goes_to_a_server_that_comes_back() -> None:
    fleet = Fleet(capped(1, name="one:1"), capped(1, name="two:2"))
    fleet.break_server("two:2")
    first, second = fleet.ask(), fleet.ask()
    assert (first.where, second.waits) == ("one:1", True)
    fleet.mend_server("two:2")
    assert second.where == "two:2"


# drained servers


def drain(fleet: Fleet, *names: str) -> None:
    fleet.router.servers.set_drained([DrainedServer(f"http://{name}") for name in names])
    fleet.dispatcher.serve()


def test_a_drained_server_gets_only_what_no_other_can_do() -> None:
    one, two = capped(None, name="one:1"), capped(None, name="two:2")
    fleet = Fleet(one, two)
    in_flight = fleet.ask()
    drain(fleet, "one:1")
    assert names([fleet.ask() for _ in range(8)]) == ["two:2"] * 8
    assert fleet.ask(server=one).where == "one:1", "only it has what this continues"
    assert fleet.ask(server=two).where == "two:2"
    assert fleet.ask(asleep=True, unwell=True, server=one).where == "one:1"
    in_flight.end()
    drain(fleet)
    assert {*names([fleet.ask() for _ in range(40)])} == {"one:1", "two:2"}


def test_a_drained_server_that_comes_later_is_drained_still() -> None:
    one, two = capped(None, name="one:1"), capped(None, name="two:2")
    fleet = Fleet(two)
    drain(fleet, "one:1")
    fleet.configure(one, two)
    assert names([fleet.ask() for _ in range(8)]) == ["two:2"] * 8
    fleet.configure(two)
    assert [each.url for each in fleet.router.servers.drained] == ["http://one:1"]


def test_what_waits_for_drained_servers_is_refused_at_once_but_for_what_only_they_have() -> None:
    one = capped(1, name="one:1")
    fleet = Fleet(one)
    first, bound, second = fleet.ask(), fleet.ask(server=one), fleet.ask()
    drain(fleet, "one:1")
    assert isinstance(second.error, NoHealthyUpstream)
    assert second.error.retry_after == DRAINED_RETRY
    assert "by the operator" in second.error.message
    assert bound.waits
    first.end()
    assert bound.where == "one:1"
    bound.end()
    fleet.assert_idle()


def test_a_lone_server_without_a_limit_is_drained_too() -> None:
    fleet = Fleet(capped(None))
    group = fleet.router.find("m")
    assert fleet.dispatcher.place_at_once(group) is not None
    drain(fleet, "gpu-1:8000")
    assert fleet.dispatcher.place_at_once(group) is None
    assert fleet.dispatcher.refusal_of(group) is not None
    assert fleet.dispatcher.refusal_of(group, uses_model=False) is None
    assert isinstance(fleet.ask().error, NoHealthyUpstream)
    drain(fleet)
    assert fleet.ask().where == "gpu-1:8000"


def test_a_server_that_sleeps_and_is_drained_rests_until_neither_is_so() -> None:
    fleet = Fleet(capped(None))
    [state] = fleet.router.servers
    drain(fleet, "gpu-1:8000")
    state.sleeping = True
    assert isinstance(fleet.ask(server=state.server).error, NoHealthyUpstream), "a sleeping server generates nothing"
    drain(fleet)
    assert state.rests
    state.sleeping = False
    assert not state.rests


# rpm and tpm of an entry


def entry(name: str, *, limit: int | None = None, seconds: float | None = 30.0, **limits: Any) -> ModelEntry:
    return ModelEntry("m", "m", capped(limit, name=name, seconds=seconds), **limits)


def test_what_waits_goes_to_a_server_that_is_added_in_its_turn() -> None:
    fleet = Fleet(capped(1, name="one:1"))
    running = fleet.ask("a")
    waiting = [fleet.ask(key) for key in ("a", "a", "b")]
    fleet.configure(capped(1, name="one:1"), capped(1, name="two:2"))
    assert names(waiting) == ["two:2", "", ""]
    # another key's first request goes before the second of the same
    running.end()
    assert names(waiting) == ["two:2", "", "one:1"]
    for each in (waiting[0], waiting[2], waiting[1]):
        each.end()
    fleet.assert_idle()


def test_what_waits_for_a_server_that_left_goes_to_the_others() -> None:
    fleet = Fleet(capped(1, name="one:1"))
    running, waiting = fleet.ask(), fleet.ask()
    fleet.configure(capped(1, name="two:2"))
    fleet.configure(capped(1, name="two:2"), capped(1, name="three:3"))
    assert waiting.where == "two:2"
    running.end()
    waiting.end()
    fleet.assert_idle()


def test_a_request_that_was_routed_before_a_change_is_placed_on_the_servers_of_now() -> None:
    for limit in (1, None):
        fleet = Fleet(capped(limit, name="one:1"))
        group = fleet.router.find("m")
        fleet.configure(capped(limit, name="two:2"))
        placed = fleet.dispatcher.place_at_once(group) or fleet.dispatcher.place(group, Ask("a", 0))
        assert isinstance(placed, Placement)
        assert placed.destination.server.name == "two:2"
        assert fleet.dispatcher.can_place(group, ())
        placed.ended()
        fleet.assert_idle()


def test_what_waits_for_a_model_that_is_deleted_waits_for_its_servers_still() -> None:
    fleet = Fleet(capped(1, name="one:1"), default=capped(None, name="default:0"))
    running, waiting = fleet.ask(), fleet.ask()
    fleet.configure(default=capped(None, name="default:0"))
    assert waiting.waits
    running.end()
    assert waiting.where == "one:1"
    waiting.end()
    fleet.assert_idle()


def test_a_default_server_that_is_another_takes_what_waits() -> None:
    fleet = Fleet(default=capped(1, name="one:1"))
    running, waiting = fleet.ask(model="any"), fleet.ask(model="any")
    fleet.configure(default=capped(1, name="two:2"))
    assert waiting.where == "two:2"
    running.end()
    waiting.end()
    fleet.assert_idle()


def test_an_entry_whose_minute_is_used_up_is_passed_over() -> None:
    fleet = Fleet(entry("one:1", rpm=2), entry("two:2"))
    asked = [fleet.ask() for _ in range(10)]
    assert names(asked).count("one:1") == 2
    fleet.pass_time(61)
    assert "one:1" in names([fleet.ask(), fleet.ask()])


def test_if_all_are_used_up_a_request_waits_for_the_next_minute_and_goes_before_later_ones() -> None:
    fleet = Fleet(entry("one:1", rpm=1, seconds=90.0))
    first, second = fleet.ask("a"), fleet.ask("b")
    fleet.pass_time(50)
    third = fleet.ask("c")
    assert (first.where, second.waits, third.waits) == ("one:1", True, True)
    fleet.clock.advance(12)
    # before any sweep: what waits longer is served by the arrival of another
    fourth = fleet.ask("d")
    assert (second.where, third.waits, fourth.waits) == ("one:1", True, True)
    fleet.pass_time(61)
    assert (third.where, fourth.waits) == ("one:1", True)


def test_what_would_wait_for_longer_than_it_may_is_refused_at_once_with_the_time() -> None:
    fleet = Fleet(entry("one:1", rpm=1, seconds=30.0))
    fleet.ask()
    fleet.pass_time(10)
    refused = fleet.ask()
    assert isinstance(refused.error, ServerBusy)
    assert refused.error.retry_after == pytest.approx(50, abs=1)
    fleet.pass_time(refused.error.retry_after or 0)
    assert fleet.ask().where == "one:1"


def test_tokens_are_counted_as_estimated_until_it_is_known_what_was_used() -> None:
    fleet = Fleet(entry("one:1", tpm=100, seconds=10.0), entry("two:2", tpm=100))
    first, second = fleet.ask(tokens=80), fleet.ask(tokens=80)
    assert {first.where, second.where} == {"one:1", "two:2"}
    third = fleet.ask(tokens=80)
    assert isinstance(third.error, ServerBusy)
    assert first.placement is not None
    assert first.placement.share is not None
    first.placement.used(10, sent=True)
    first.end()
    fourth = fleet.ask(tokens=80)
    assert fourth.where == first.where
    assert fourth.placement is not None
    fourth.placement.used(0, sent=False)
    assert fleet.ask(tokens=80).where == first.where


class AnyRequests(RuleBasedStateMachine):
    """Any interleaving of arrivals, ends, departures, deaths and time: limits hold, and no place is left unused."""

    @initialize(limits=st.lists(st.integers(1, 3), min_size=1, max_size=3), places=st.integers(0, 4))
    def begin(self, limits: list[int], places: int) -> None:
        self.limits = {f"s{number}:{number + 1}": limit for number, limit in enumerate(limits)}
        self.places = places
        self.configured = set(self.limits)
        self.fleet = Fleet(*self.servers())
        self.asked: list[Asked] = []
        self.dead: set[str] = set()

    def servers(self) -> list[Server]:
        return [capped(self.limits[name], places=self.places, name=name) for name in sorted(self.configured)]

    @property
    def running(self) -> list[Asked]:
        return [each for each in self.asked if each.placement is not None and not each.placement._ended]

    @property
    def waiting(self) -> list[Asked]:
        return [each for each in self.asked if each.waits]

    @rule(key=st.sampled_from("abc"), priority=st.integers(-1, 1), times=st.integers(1, 4))
    def ask(self, key: str, priority: int, times: int) -> None:
        for _ in range(times):
            self.asked.append(self.fleet.ask(key, priority))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def end(self, data: st.DataObject, fails: bool) -> None:
        ended = data.draw(st.sampled_from(self.running))
        assert ended.placement is not None
        if fails:
            ended.placement.failed(UpstreamUnreachable("gone"), self.fleet.clock.seconds())
        else:
            ended.placement.responded(200, self.fleet.clock.seconds())
        ended.end()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).leave()

    @rule(data=st.data())
    def break_or_mend(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.configured)))
        if name in self.dead:
            self.dead.remove(name)
            self.fleet.mend_server(name)
        else:
            self.dead.add(name)
            self.fleet.break_server(name)

    @rule(data=st.data())
    def change_servers(self, data: st.DataObject) -> None:
        self.configured = data.draw(st.sets(st.sampled_from(sorted(self.limits)), min_size=1))
        for name in self.dead - self.configured:
            self.dead.remove(name)
            self.fleet.mend_server(name)
        self.fleet.configure(*self.servers())

    @rule(seconds=st.sampled_from([0.5, 5.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.fleet.pass_time(seconds)

    @invariant()
    def limits_hold_and_no_place_is_lost(self) -> None:
        if not hasattr(self, "fleet"):
            return
        in_flight = dict.fromkeys(self.limits, 0)
        for each in self.running:
            in_flight[each.where] += 1
        now = self.fleet.clock.seconds()
        for state in self.fleet.router.servers:
            assert state.in_flight == in_flight[state.name] <= self.limits[state.name]
            if self.waiting and state.in_flight < self.limits[state.name]:
                assert not state.is_usable(now), "a request waits, and a server has room"
        assert len(self.fleet.dispatcher) == len(self.waiting) <= self.places * len(self.limits)


TestAnyRequests = AnyRequests.TestCase
TestAnyRequests.settings = settings(stateful_step_count=40)


def test_a_request_that_times_out_at_a_server_that_answers_others_is_counted_and_takes_it_out_of_nothing() -> None:
    fleet = Fleet(capped(name="gpu-1:8000"), capped(name="gpu-2:8000"))
    state = fleet.router.servers.named("gpu-1:8000")
    assert state is not None
    for _ in range(20):
        asked = fleet.ask()
        while asked.where != state.name:
            asked.end()
            asked = fleet.ask()
        assert asked.placement is not None
        fleet.clock.advance(1)
        state.last_alive = fleet.clock.seconds()
        assert not asked.placement.failed(UpstreamTimeout("It took too long."), fleet.clock.seconds(), sent=True)
        asked.end()
    assert state.breaker.failures == {"slow": 20}
    assert state.breaker.closed
