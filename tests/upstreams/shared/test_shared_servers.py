"""The processes know the same of servers: requests in flight, what checks found, prefix caches, stored responses."""

from __future__ import annotations

from typing import Any

from tests.proxy.gateway_fakes import server
from tests.upstreams.shared.memory_processes import Processes
from tests.upstreams.shared.worker_fleets import Workers
from twisted_vllm.upstreams.policies import Policy, RoutingRequest
from twisted_vllm.upstreams.shared.learned import MOST_BLOCKS, SharedPlaces, SharedPrefixes
from twisted_vllm.upstreams.shared.servers import INTERVAL

ONE, TWO = "one:1", "two:2"


def both(strategy: str = "least-busy", **options: Any) -> Workers:
    return Workers(2, server(ONE), server(TWO), strategy=strategy, **options)


def test_least_busy_sees_the_requests_of_another_worker_within_100_ms() -> None:
    workers = both()
    asked = [workers[1].ask() for _ in range(4)]
    assert {each.where for each in asked} == {ONE, TWO}
    for each in asked:
        if each.where == ONE:
            each.end()
    workers.pass_time(2 * INTERVAL)
    assert workers[2].state(TWO).in_flight == 2
    assert [workers[2].ask().where for _ in range(2)] == [ONE, ONE]
    workers.pass_time(2 * INTERVAL)
    assert workers[1].state(ONE).in_flight == 2
    assert workers[1].state(ONE).in_flight_here == 0


def test_requests_of_a_worker_that_ended_are_forgotten() -> None:
    workers = both()
    for _ in range(4):
        workers[1].ask()
    workers.pass_time(INTERVAL)
    assert sum(state.in_flight for state in workers[2].servers) == 4
    workers.kill(1)
    assert [(state.in_flight, state.in_flight_elsewhere) for state in workers[2].servers] == [(0, 0), (0, 0)]


def test_a_worker_that_joins_knows_the_requests_of_the_others() -> None:
    workers = both()
    for _ in range(4):
        workers[1].ask()
    joined = workers.start(3)
    assert sum(state.in_flight for state in joined.servers) == 4


def test_nothing_is_told_while_nothing_changes() -> None:
    workers = both()
    workers.pass_time(1.0)
    before = dict(workers.processes.sent)
    workers.pass_time(10.0)
    assert workers.processes.sent == before


def test_a_burst_of_requests_is_told_once_in_an_interval() -> None:
    workers = both()
    for _ in range(100):
        asked = workers[1].ask()
        asked.end()
        workers[1].ask()
    before = workers.processes.sent.get("servers.loads", 0)
    workers.pass_time(INTERVAL)
    assert workers.processes.sent["servers.loads"] == before + 1


def test_workers_know_what_the_housekeeper_found() -> None:
    workers = both(housekeeper=True)
    found = workers[1].state(ONE)
    found.waiting, found.kv_usage, found.sleeping, found.sleep_changed = 7.0, 0.5, True, 1000.5
    found.running, found.cache_hits, found.version = 3.0, 0.25, "0.11.0"
    workers.pass_time(INTERVAL)
    for number in (2, 3):
        state = workers[number].state(ONE)
        assert (state.waiting, state.kv_usage, state.sleeping, state.sleep_changed) == (7.0, 0.5, True, 1000.5)
        assert (state.running, state.cache_hits, state.version) == (3.0, 0.25, "0.11.0")
    joined = workers.start(3)
    assert joined.state(ONE).sleeping
    workers.kill(1)
    assert workers[2].state(ONE).waiting == 7.0, "the last state is kept without a housekeeper"


def test_an_answer_at_a_worker_proves_to_the_housekeeper_that_a_server_lives() -> None:
    workers = both(housekeeper=True)
    asked = workers[2].ask()
    assert asked.placement is not None
    asked.placement.responded(200, workers.clock.seconds())
    workers.pass_time(INTERVAL)
    assert workers[1].state(asked.where).last_alive == asked.placement.destination.state.last_alive


def test_after_an_act_on_servers_the_housekeeper_checks_them_at_once() -> None:
    workers = both(housekeeper=True)
    workers[2].sharing.servers.acted()
    workers.settle()
    assert sorted(workers[1].health.checked) == [ONE, TWO]
    assert workers[3].health.checked == []


def test_prompts_that_one_worker_sent_are_found_by_the_other() -> None:
    workers = both("prefix")
    prompt = RoutingRequest(prefix=tuple(range(1, 40)))
    first = workers[1].ask(routing=prompt)
    workers.pass_time(INTERVAL)
    again = workers[2].ask(routing=RoutingRequest(prefix=(*prompt.prefix, 40, 41)))
    assert again.where == first.where
    group = workers[2].router.group_named("m")
    assert group is not None
    policy: Any = group.policy
    assert policy._table.matched(prompt.prefix, [first.where]) == ([39], True)
    workers[1].sharing.servers.emptied()
    workers.settle()
    assert policy._table.matched(prompt.prefix, [first.where])[0] == [0]


def test_more_prompts_than_a_batch_holds_are_not_told() -> None:
    processes = Processes()
    nobody: Policy | None = None
    prefixes = SharedPrefixes(processes.process(1, 1), lambda model: nobody)
    other = processes.process(2, 2)
    received: list[object] = []
    other.on("servers.prefixes", list[Any], lambda message, sender: received.extend(message))
    processes.join(1)
    prompt = RoutingRequest(prefix=tuple(range(999)))
    for _ in range(2 * MOST_BLOCKS // 1_000):
        prefixes.sent("m", ONE, prompt)
    prefixes.tick()
    processes.deliver_all()
    assert len(received) == MOST_BLOCKS // 1_000
    assert prefixes.untold == 2 * MOST_BLOCKS // 1_000 - len(received)
    prefixes.sent("m", ONE, prompt)
    prefixes.tick()
    processes.deliver_all()
    assert len(received) == MOST_BLOCKS // 1_000 + 1


def test_a_stored_response_is_found_by_all_workers() -> None:
    processes = Processes()
    first, second = SharedPlaces(processes.process(1, 1)), SharedPlaces(processes.process(2, 2))
    processes.join(1)
    first.keep("resp_1", ONE)
    assert second.find("resp_1") is None
    first.tick()
    processes.deliver_all()
    assert second.find("resp_1") == ONE
    second.tick()
    assert not processes.pairs, "what was told is not told back"
