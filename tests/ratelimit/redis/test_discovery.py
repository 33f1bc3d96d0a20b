"""Who the master is: Sentinels and a Cluster's nodes are asked, and the connection follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from benchmarks.free_ports import free_port
from tests.ratelimit.redis.scripted_redis import Failed, ScriptedRedis
from twisted_vllm.config.redis_places import RedisCluster, RedisPlace, RedisSentinels
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import RedisServer
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.redis import connection as connections
from twisted_vllm.ratelimit.redis.client import RedisUnavailable
from twisted_vllm.ratelimit.redis.connection import RedisConnection
from twisted_vllm.ratelimit.redis.discovery import SLOT, finder_of
from twisted_vllm.ratelimit.redis.limiter import RedisLimiter
from twisted_vllm.ratelimit.redis.protocol import CLUSTER_PREFIX

MASTER = {"ROLE": ["master", 0, []], "EVALSHA": "", "EVAL": ""}
REPLICA = {"ROLE": ["slave", "127.0.0.1", 1, "connected", 0]}
PATIENCE = 0.5

Script = Callable[[dict[str, Any]], ScriptedRedis]


@pytest.fixture
def script(reactor: Any) -> Iterator[Script]:
    """Start scripted servers; they are stopped at the end."""
    made: list[ScriptedRedis] = []

    def make(answers: dict[str, Any]) -> ScriptedRedis:
        made.append(ScriptedRedis(reactor, answers))
        return made[-1]

    yield make
    for each in made:
        pytest_twisted.blockon(each.stop())


class Told:
    """A connection, and what it tells."""

    def __init__(self, reactor: Any, place: RedisPlace) -> None:
        self._reactor = reactor
        self.told: list[str] = []
        self.connection = RedisConnection(reactor, place, PATIENCE, lambda: self.told.append(""), self.told.append)
        self.connection.start()

    async def until(self, told: str) -> None:
        deadline = self._reactor.seconds() + 15
        while not any((told in each) if told else not each for each in self.told):
            assert self._reactor.seconds() < deadline, self.told
            await deferLater(self._reactor, 0.01)


@pytest.fixture
def connect(reactor: Any) -> Iterator[Callable[[RedisPlace], Told]]:
    """Start connections; they are stopped at the end."""
    made: list[Told] = []

    def start(place: RedisPlace) -> Told:
        made.append(Told(reactor, place))
        return made[-1]

    yield start
    for each in made:
        pytest_twisted.blockon(each.connection.stop())


Connect = Callable[[RedisPlace], Told]


def names(port: int) -> dict[str, Any]:
    return {"SENTINEL": ["127.0.0.1", str(port)]}


def sentinels(*servers: RedisServer) -> RedisSentinels:
    return RedisSentinels(servers, "gate", RedisServer("127.0.0.1", database=3, password=Secret("hush")))


async def found_by(reactor: Any, place: RedisPlace, timeout: float = PATIENCE) -> RedisServer:
    return await finder_of(reactor, place, timeout).find()


@pytest_twisted.ensureDeferred
async def test_most_sentinels_name_the_master_and_one_that_was_cut_off_is_not_believed(
    reactor: Any, script: Script
) -> None:
    old, one, two = script(names(1)), script(names(2)), script(names(2))
    found = await found_by(reactor, sentinels(old.server(), one.server(), two.server()))
    assert found == RedisServer("127.0.0.1", 2, 3, password=Secret("hush"))
    assert one.received == [["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "gate"]]


@pytest_twisted.ensureDeferred
async def test_sentinels_that_are_away_or_silent_do_not_matter_while_one_answers(reactor: Any, script: Script) -> None:
    silent, last = script({"SENTINEL": ScriptedRedis.SILENT}), script(names(2))
    away = RedisServer("127.0.0.1", free_port())
    found = await found_by(reactor, sentinels(away, silent.server(), last.server()))
    assert found.port == 2
    await deferLater(reactor, 0.05)
    assert not silent.open


@pytest_twisted.ensureDeferred
async def test_a_sentinel_gets_its_own_password_and_not_the_master_s(reactor: Any, script: Script) -> None:
    sentinel = script(names(2) | {"AUTH": "OK"})
    await found_by(reactor, sentinels(sentinel.server("look")))
    assert sentinel.received[0] == ["AUTH", "look"]


@pytest_twisted.ensureDeferred
async def test_the_reason_names_each_sentinel_and_no_password(reactor: Any, script: Script) -> None:
    strict = script({"AUTH": Failed("WRONGPASS invalid password")})
    nobody = script({"SENTINEL": None})
    other = script({"SENTINEL": ["not a host", "1"]})
    closed = free_port()
    with pytest.raises(RedisUnavailable) as caught:
        servers = [strict.server("hush"), nobody.server(), other.server(), RedisServer("127.0.0.1", closed)]
        await found_by(reactor, sentinels(*servers))
    reason = str(caught.value)
    assert reason.startswith("no Sentinel names the master (")
    for part in (
        "WRONGPASS",
        f"127.0.0.1:{nobody.number}: it knows no master that is called gate",
        f"127.0.0.1:{other.number}: it names a host and port that cannot be one",
        f"127.0.0.1:{closed}: Connection was refused",
    ):
        assert part in reason
    assert "hush" not in reason


@pytest.mark.parametrize("port", ["0", "65536", "999999", "x", "-1"])
@pytest_twisted.ensureDeferred
async def test_a_port_that_cannot_be_one_is_refused(reactor: Any, script: Script, port: str) -> None:
    with pytest.raises(RedisUnavailable, match="cannot be one"):
        await found_by(reactor, sentinels(script({"SENTINEL": ["h", port]}).server()))


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_no_master_is_left_until_the_sentinels_name_one(
    script: Script, connect: Connect
) -> None:
    replica, master = script(REPLICA | {"AUTH": "OK", "SELECT": "OK"}), script(MASTER | {"AUTH": "OK", "SELECT": "OK"})
    sentinel = script(names(replica.number))
    told = connect(sentinels(sentinel.server()))
    await told.until("is no master, or not yet")
    assert "" not in told.told
    sentinel.answers |= names(master.number)
    await told.until("")
    assert master.received[:3] == [["AUTH", "hush"], ["SELECT", "3"], ["ROLE"]]


@pytest_twisted.ensureDeferred
async def test_a_user_who_may_not_ask_for_the_role_is_served(script: Script, connect: Connect) -> None:
    master = script({"ROLE": Failed("NOPERM no permissions"), "AUTH": "OK", "SELECT": "OK"})
    await connect(sentinels(script(names(master.number)).server())).until("")


@pytest_twisted.ensureDeferred
async def test_a_master_that_was_replaced_is_left_though_it_still_answers(
    monkeypatch: pytest.MonkeyPatch, reactor: Any, script: Script, connect: Connect
) -> None:
    monkeypatch.setattr(connections, "WATCH_SECONDS", 0.05)
    both = MASTER | {"AUTH": "OK", "SELECT": "OK"}
    old, new = script(both), script(both)
    sentinel = script(names(old.number))
    told = connect(sentinels(sentinel.server()))
    await told.until("")
    sentinel.answers |= {"SENTINEL": Failed("ERR out of order")}
    await deferLater(reactor, 0.2)
    assert told.told == [""], "while nobody knows better, the connection stays"
    sentinel.answers |= names(new.number)
    await told.until(f"127.0.0.1:{new.number} is the master now, and not 127.0.0.1:{old.number}")
    while not new.open:
        await deferLater(reactor, 0.01)


@pytest.mark.parametrize(
    "error",
    [
        "READONLY You can't write against a read only replica. script: 1, on @user_script:1.",
        "ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write.",
        "MOVED 1 127.0.0.1:1",
        "ASK 1 127.0.0.1:1",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_server_that_sends_elsewhere_is_left_and_asked_for_again(
    reactor: Any, script: Script, error: str
) -> None:
    asked = script({"EVALSHA": Failed("NOSCRIPT"), "EVAL": ""})
    limiter = RedisLimiter(reactor, asked.server(), timeout=PATIENCE, on_loss="local", local=LocalLimiter())
    limiter.start()
    while not limiter.is_ready:
        await deferLater(reactor, 0.01)
    asked.answers["EVALSHA"] = Failed(error)
    [first] = asked.open
    limited = Limited("key", "k1", Allowance(rpm=1))
    assert await limiter.admit([limited], "", 0, 0, 0.0), "it is counted here meanwhile"
    assert not limiter.is_ready
    asked.answers["EVALSHA"] = ""
    while not limiter.is_ready:
        await deferLater(reactor, 0.01)
    assert first not in asked.open
    await limiter.stop()


def slots(*owners: tuple[int, int, Any, int]) -> dict[str, Any]:
    return {"CLUSTER": [[first, last, [host, port, "id"], ["replica", 1, "id"]] for first, last, host, port in owners]}


@pytest_twisted.ensureDeferred
async def test_the_node_with_the_slot_of_the_limits_is_found(reactor: Any, script: Script) -> None:
    node = script(slots((0, SLOT - 1, "low", 1), (SLOT, SLOT, "own", 2), (SLOT + 1, 16383, "high", 3)) | {"AUTH": "OK"})
    found = await found_by(reactor, RedisCluster((node.server("hush"),)))
    assert found == RedisServer("own", 2, password=Secret("hush"))
    assert node.received == [["AUTH", "hush"], ["CLUSTER", "SLOTS"]]


@pytest_twisted.ensureDeferred
async def test_a_node_without_a_name_is_the_one_that_was_asked(reactor: Any, script: Script) -> None:
    node = script(slots((0, 16383, "", 7)))
    assert await found_by(reactor, RedisCluster((node.server(),))) == RedisServer("127.0.0.1", 7)


@pytest.mark.parametrize("answer", [[], None, "x", [[0, 1]], [["a", "b", ["h", 1]]], Failed("ERR no cluster support")])
@pytest_twisted.ensureDeferred
async def test_what_names_no_owner_is_a_reason(reactor: Any, script: Script, answer: Any) -> None:
    node = script({"CLUSTER": answer})
    with pytest.raises(RedisUnavailable, match="no node of the Cluster says where"):
        await found_by(reactor, RedisCluster((node.server(),)))


@pytest_twisted.ensureDeferred
async def test_in_a_cluster_every_script_has_a_key_and_all_keys_have_one_slot(reactor: Any, script: Script) -> None:
    node = script(MASTER)
    node.answers |= slots((0, 16383, "127.0.0.1", node.number))
    limiter = RedisLimiter(
        reactor, RedisCluster((node.server(),)), timeout=PATIENCE, on_loss="local", local=LocalLimiter()
    )
    limiter.start()
    while not limiter.is_ready:
        await deferLater(reactor, 0.01)
    node.answers["EVALSHA"] = "no 1,1,1, 1,1,1,"
    limiter.admit([Limited("key", "k1", Allowance(rpm=1))], "", 0, 0, 0.0).addErrback(lambda _: None)
    limiter.budget_reset("key", "k1", 0, 0)
    while len(scripts := [words for words in node.received if words[0] == "EVALSHA"]) < 3:
        await deferLater(reactor, 0.01)
    await limiter.stop()
    for words in scripts:
        count = int(words[2])
        assert count >= 1
        assert all(key.startswith(CLUSTER_PREFIX) for key in words[3 : 3 + count])
