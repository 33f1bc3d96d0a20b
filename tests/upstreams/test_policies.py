"""The policies keep their promises, starve nobody, and move little when a server leaves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.config.routing import STRATEGIES
from twisted_vllm.upstreams.policies import (
    Policy,
    RoutingRequest,
    ServerSnapshot,
    load_of,
    make_policy,
)

NAMES = ("a", "b", "c", "d", "e")

snapshots = st.lists(
    st.builds(
        ServerSnapshot,
        name=st.sampled_from(NAMES),
        weight=st.floats(0.01, 100.0),
        in_flight=st.integers(0, 200),
        queued=st.floats(0.0, 100.0),
        latency=st.one_of(st.just(0.0), st.floats(0.001, 100.0)),
        kv_usage=st.floats(0.0, 1.0),
    ),
    min_size=1,
    max_size=len(NAMES),
    unique_by=lambda each: each.name,
)
requests = st.builds(
    RoutingRequest,
    session=st.sampled_from((b"", b"one", b"two")),
    prefix=st.lists(st.integers(1, 4), max_size=6).map(
        lambda numbers: tuple(hash(tuple(numbers[:end])) for end in range(1, len(numbers) + 1))
    ),
)


def of_prompt(*parts: object) -> RoutingRequest:
    """A request whose prompt has one block for each part."""
    return RoutingRequest(prefix=tuple(hash(parts[:end]) for end in range(1, len(parts) + 1)))


def send(policy: Policy, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> str:
    name = servers[policy.choose(servers, request)].name
    policy.sent(name, request)
    return name


def idle(*names: str) -> list[ServerSnapshot]:
    return [ServerSnapshot(name, 1.0, 0) for name in names]


@attrs.define
class Load:
    """Servers that answer at random while requests come."""

    policy: Policy
    weights: dict[str, float]
    source: random.Random
    in_flight: Counter[str] = attrs.field(factory=Counter)
    sent: Counter[str] = attrs.field(factory=Counter)

    def run(self, requests: Sequence[RoutingRequest], at_once: int) -> Counter[str]:
        """Send requests, so many in flight on average; return how many each server got."""
        self.sent.clear()
        for request in requests:
            while self.in_flight.total() > at_once:
                self.in_flight[self.source.choice(list(self.in_flight.elements()))] -= 1
            servers = [ServerSnapshot(name, weight, self.in_flight[name]) for name, weight in self.weights.items()]
            name = send(self.policy, servers, request)
            self.in_flight[name] += 1
            self.sent[name] += 1
        return self.sent


class TestEveryPolicy:
    @given(st.sampled_from(STRATEGIES), st.lists(st.tuples(snapshots, requests), max_size=30), st.integers(0, 9))
    def test_it_chooses_a_server_and_depends_on_its_random_source_alone(
        self, strategy: str, asked: list[tuple[list[ServerSnapshot], RoutingRequest]], seed: int
    ) -> None:
        first, second = (make_policy(strategy, random.Random(seed).random) for _ in range(2))
        for number, (servers, request) in enumerate(asked):
            chosen = first.choose(servers, request)
            assert 0 <= chosen < len(servers)
            assert second.choose(servers, request) == chosen
            for policy in (first, second):
                policy.sent(servers[chosen].name, request)
                if number % 5 == 4:
                    policy.forgot(servers[0].name)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("at_once", [0, 3, 40])
    @pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 8.0, "b": 1.0}, {"a": 1.0, "b": 0.1}])
    def test_no_server_starves_though_many_talk(self, strategy: str, at_once: int, weights: dict[str, float]) -> None:
        load = Load(make_policy(strategy, random.Random(1).random), weights, random.Random(2))
        asked = [
            RoutingRequest(b"%d" % (number % 90), of_prompt("system", number % 90, number // 90).prefix)
            for number in range(3_000)
        ]
        found = load.run(asked, at_once)
        assert set(found) == set(weights)
        assert min(found.values()) > 5

    @pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "session"])
    def test_no_server_starves_under_one_hot_prompt(self, strategy: str) -> None:
        load = Load(make_policy(strategy, random.Random(1).random), {"a": 1.0, "b": 1.0, "c": 1.0}, random.Random(2))
        found = load.run([of_prompt("the", "same", "prompt")] * 3_000, 40)
        assert min(found.get(name, 0) for name in "abc") > 150

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_server_that_was_away_gets_requests_again(self, strategy: str) -> None:
        policy = make_policy(strategy, random.Random(1).random)
        asked = [
            RoutingRequest(b"%d" % (number % 90), of_prompt(number % 9, number % 90, number // 90).prefix)
            for number in range(1_800)
        ]
        load = Load(policy, {"a": 1.0, "b": 1.0}, random.Random(2))
        load.run(asked[:600], 20)
        policy.forgot("b")
        load.weights = {"a": 1.0}
        load.in_flight["b"] = 0
        load.run(asked[600:1_200], 20)
        load.weights = {"a": 1.0, "b": 1.0}
        assert load.run(asked[1_200:], 20)["b"] > 200

    def test_a_strategy_that_does_not_exist_is_an_error(self) -> None:
        with pytest.raises(KeyError):
            make_policy("fastest", random.random)

    def test_they_say_what_they_read(self) -> None:
        made = {strategy: make_policy(strategy, random.random) for strategy in STRATEGIES}
        assert [strategy for strategy, policy in made.items() if policy.reads_prompt] == ["prefix"]
        assert [strategy for strategy, policy in made.items() if policy.reads_session] == ["session"]


class TestSimpleShuffle:
    def test_requests_are_shared_out_by_weight(self) -> None:
        policy = make_policy("simple-shuffle", random.Random(3).random)
        servers = [ServerSnapshot("a", 1.0, 99), ServerSnapshot("b", 3.0, 0)]
        found = Counter(send(policy, servers, RoutingRequest()) for _ in range(4_000))
        assert abs(found["a"] - 1_000) < 150


class TestLeastBusy:
    @given(snapshots, st.integers(0, 5))
    def test_no_other_server_has_less_load_for_its_weight(self, servers: list[ServerSnapshot], seed: int) -> None:
        chosen = servers[make_policy("least-busy", random.Random(seed).random).choose(servers, RoutingRequest())]
        assert load_of(chosen) / chosen.weight == min(load_of(each) / each.weight for each in servers)

    def test_among_idle_servers_the_weight_decides_the_chance(self) -> None:
        policy = make_policy("least-busy", random.Random(3).random)
        servers = [ServerSnapshot("a", 1.0, 0), ServerSnapshot("b", 3.0, 0), ServerSnapshot("c", 9.0, 1)]
        found = Counter(send(policy, servers, RoutingRequest()) for _ in range(4_000))
        assert abs(found["a"] - 1_000) < 150
        assert found["c"] == 0

    def test_what_waits_at_a_server_and_a_full_cache_count(self) -> None:
        policy = make_policy("least-busy", lambda: 0.0)
        waiting = [ServerSnapshot("a", 1.0, 3, queued=5.0), ServerSnapshot("b", 1.0, 7)]
        assert send(policy, waiting, RoutingRequest()) == "b"
        full = [ServerSnapshot("a", 1.0, 5, kv_usage=1.0), ServerSnapshot("b", 1.0, 7, kv_usage=0.5)]
        assert send(policy, full, RoutingRequest()) == "b"


class TestRoundRobin:
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3))
    def test_every_cycle_gives_each_server_its_weight(self, weights: list[int], cycles: int) -> None:
        policy = make_policy("round-robin", lambda: 0.0)
        servers = [ServerSnapshot(name, float(weight), 0) for name, weight in zip(NAMES, weights, strict=False)]
        found = Counter(send(policy, servers, RoutingRequest()) for _ in range(cycles * sum(weights)))
        assert [found[each.name] for each in servers] == [cycles * weight for weight in weights]

    def test_the_turns_of_a_heavy_server_are_spread(self) -> None:
        policy = make_policy("round-robin", lambda: 0.0)
        servers = [ServerSnapshot("a", 5.0, 0), ServerSnapshot("b", 1.0, 0), ServerSnapshot("c", 1.0, 0)]
        assert "".join(send(policy, servers, RoutingRequest()) for _ in range(7)) == "aabacaa"


class TestLatencyBased:
    def test_the_quicker_server_takes_requests_until_it_is_as_slow(self) -> None:
        policy = make_policy("latency-based-routing", lambda: 0.5)
        for in_flight, expected in ((0, "quick"), (8, "quick"), (10, "slow")):
            servers = [
                ServerSnapshot("slow", 1.0, 0, latency=1.0),
                ServerSnapshot("quick", 1.0, in_flight, latency=0.1),
            ]
            assert send(policy, servers, RoutingRequest()) == expected

    def test_a_server_of_unknown_latency_is_tried(self) -> None:
        policy = make_policy("latency-based-routing", lambda: 0.5)
        servers = [ServerSnapshot("known", 1.0, 1, latency=0.1), ServerSnapshot("new", 1.0, 0)]
        assert send(policy, servers, RoutingRequest()) == "new"

    def test_a_slow_server_may_show_that_it_is_quick_again(self) -> None:
        policy = make_policy("latency-based-routing", random.Random(1).random)
        servers = [ServerSnapshot("slow", 1.0, 0, latency=9.0), ServerSnapshot("quick", 1.0, 0, latency=0.1)]
        found = Counter(send(policy, servers, RoutingRequest()) for _ in range(10_000))
        assert 10 < found["slow"] < 100


class TestSession:
    @given(st.binary(min_size=1, max_size=20), st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    def test_a_session_stays_at_its_server_in_any_order_of_servers(self, key: bytes, names: list[str]) -> None:
        policy = make_policy("session", random.random)
        request = RoutingRequest(key)
        assert send(policy, idle(*names), request) == send(policy, idle(*reversed(names)), request)

    def test_only_the_sessions_of_a_server_that_leaves_move(self) -> None:
        policy = make_policy("session", random.random)
        asked = [RoutingRequest(b"%d" % number) for number in range(300)]
        before = [send(policy, idle("a", "b", "c"), request) for request in asked]
        policy.forgot("c")
        after = [send(policy, idle("a", "b"), request) for request in asked]
        assert all(old in (new, "c") for old, new in zip(before, after, strict=True))
        assert Counter(after)["a"] > 100 < Counter(after)["b"]
        assert [send(policy, idle("a", "b", "c"), request) for request in asked] == before

    @given(snapshots, st.binary(min_size=1, max_size=9))
    def test_no_session_overloads_a_server(self, servers: list[ServerSnapshot], key: bytes) -> None:
        chosen = servers[make_policy("session", lambda: 0.0).choose(servers, RoutingRequest(key))]
        total, weights = sum(load_of(each) for each in servers) + 1, sum(each.weight for each in servers)
        assert load_of(chosen) + 1 <= 1.5 * total * chosen.weight / weights + 4.0 + 1e-6

    def test_one_hot_session_spills_over(self) -> None:
        load = Load(make_policy("session", random.Random(1).random), {"a": 1.0, "b": 1.0}, random.Random(2))
        assert min(load.run([RoutingRequest(b"the one")] * 1_000, 40).values()) > 100

    def test_without_a_session_the_least_busy_server_is_taken(self) -> None:
        servers = [ServerSnapshot("a", 1.0, 3), ServerSnapshot("b", 1.0, 2)]
        assert send(make_policy("session", lambda: 0.0), servers, RoutingRequest()) == "b"


class TestPrefix:
    def test_a_conversation_stays_where_it_began_as_long_as_load_allows(self) -> None:
        policy = make_policy("prefix", random.Random(1).random)
        turn: tuple[object, ...] = ("system", "first")
        began = send(policy, idle("a", "b"), of_prompt(*turn))
        for number in range(20):
            turn += ("answer", number)
            servers = [ServerSnapshot(name, 1.0, 5 if name == began else 3) for name in "ab"]
            assert servers[policy.choose(servers, of_prompt(*turn))].name == began
            policy.sent(began, of_prompt(*turn))
            # others talk elsewhere
            policy.sent("b" if began == "a" else "a", of_prompt("other", number))

    @pytest.mark.parametrize("servers", ["ab", "abc", "abcde"])
    def test_new_beginnings_are_spread_evenly_though_no_server_is_busy(self, servers: str) -> None:
        policy = make_policy("prefix", random.Random(1).random)
        found = Counter(send(policy, idle(*servers), of_prompt(number, "x")) for number in range(60))
        assert set(found.values()) == {60 // len(servers)}

    def test_all_users_at_once_are_shared_out_by_group(self) -> None:
        for seed in range(30):
            source = random.Random(seed)
            policy = make_policy("prefix", source.random)
            users = [(user % 6, user) for user in range(24)]
            source.shuffle(users)
            in_flight: Counter[str] = Counter()
            groups: dict[str, set[int]] = {"a": set(), "b": set()}
            for group, user in users:
                servers = [ServerSnapshot(name, 1.0, in_flight[name]) for name in "ab"]
                name = send(policy, servers, of_prompt(group, "system", user))
                in_flight[name] += 1
                groups[name].add(group)
            assert max(in_flight.values()) <= 14
            assert len(groups["a"] & groups["b"]) <= 2

    def test_a_hot_beginning_spills_over_before_its_server_is_overloaded(self) -> None:
        policy = make_policy("prefix", random.Random(1).random)
        in_flight: Counter[str] = Counter()
        for user in range(40):
            servers = [ServerSnapshot(name, 1.0, in_flight[name]) for name in "ab"]
            in_flight[send(policy, servers, of_prompt("hot", user))] += 1
            assert in_flight["a"] + in_flight["b"] < 6 or max(in_flight.values()) <= 0.6 * in_flight.total() + 1

    def test_one_prompt_for_all_keeps_to_one_server_while_few_ask(self) -> None:
        policy = make_policy("prefix", random.Random(1).random)
        found = Counter(send(policy, idle("a", "b"), of_prompt("the", "same")) for _ in range(50))
        assert len(found) == 1

    def test_when_a_server_leaves_its_conversations_are_spread_and_the_others_stay(self) -> None:
        policy = make_policy("prefix", random.Random(1).random)
        talks = {number: (number % 12, "system", number) for number in range(48)}
        at = {number: send(policy, idle("a", "b", "c"), of_prompt(*talk)) for number, talk in talks.items()}
        policy.forgot("c")
        moved, spread = 0, Counter[str]()
        for number, talk in talks.items():
            name = send(policy, idle("a", "b"), of_prompt(*talk, "next"))
            moved += at[number] not in ("c", name)
            spread[name] += at[number] == "c"
        assert moved <= 3
        assert min(spread["a"], spread["b"]) >= 4

    def test_a_prompt_without_blocks_goes_to_the_least_busy_server(self) -> None:
        policy = make_policy("prefix", random.Random(1).random)
        servers = [ServerSnapshot("a", 1.0, 7), ServerSnapshot("b", 1.0, 3)]
        assert send(policy, servers, RoutingRequest()) == "b"

    def test_requests_follow_the_weights_in_the_long_run(self) -> None:
        load = Load(make_policy("prefix", random.Random(1).random), {"a": 3.0, "b": 1.0}, random.Random(2))
        asked = [of_prompt(number % 40, number // 40) for number in range(4_000)]
        assert 0.65 <= load.run(asked, 32)["a"] / 4_000 <= 0.85
