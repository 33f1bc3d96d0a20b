"""A master that dies, hangs or is replaced: limits go on at the next, and exceed by what was not replicated at most."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import DeferredList
from twisted.internet.task import deferLater

from tests.ratelimit.limiter_contract import NOON, key
from tests.services.private_redis import PROGRAMS, PrivateRedis, installed
from tests.services.redis_groups import Cluster, Replicated, wait_until
from twisted_vllm.app.probe_redis import look_at_redis
from twisted_vllm.config.redis_places import RedisCluster, RedisPlace
from twisted_vllm.errors import LimitsUnavailable, RateLimitExceeded
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.redis.client import RedisUnavailable
from twisted_vllm.ratelimit.redis.discovery import SLOT
from twisted_vllm.ratelimit.redis.limiter import RedisLimiter

#: seconds until a failover is over, on a busy machine
PATIENCE = 30.0
LIMIT = 2000

MakeLimiter = Callable[..., Coroutine[Any, Any, RedisLimiter]]


@pytest.fixture(params=installed() or PROGRAMS[:1])
def program(request: pytest.FixtureRequest) -> str:
    if not installed():
        pytest.skip("Neither redis-server nor valkey-server is installed")
    return str(request.param)


@pytest.fixture
def replicated(program: str) -> Iterator[Replicated]:
    group = Replicated(program)
    try:
        group.start()
        yield group
    finally:
        group.remove()


@pytest.fixture
def cluster(program: str) -> Iterator[Cluster]:
    group = Cluster(program)
    try:
        group.start()
        yield group
    finally:
        group.remove()


@pytest.fixture
def make_limiter(reactor: Any) -> Iterator[MakeLimiter]:
    made: list[RedisLimiter] = []

    async def make(place: RedisPlace, **options: Any) -> RedisLimiter:
        defaults: dict[str, Any] = {"timeout": 0.5, "on_loss": "refuse", "local": LocalLimiter()}
        limiter = RedisLimiter(reactor, place, **(defaults | options))
        made.append(limiter)
        limiter.start()
        await until(reactor, lambda: limiter.is_ready)
        return limiter

    yield make
    for limiter in made:
        pytest_twisted.blockon(limiter.stop())


async def until(reactor: Any, condition: Callable[[], bool]) -> None:
    deadline = reactor.seconds() + PATIENCE
    while not condition():
        assert reactor.seconds() < deadline
        await deferLater(reactor, 0.02)


class Load:
    """Requests of one key from several processes, some every turn, until it is stopped."""

    def __init__(self, reactor: Any, limiters: list[RedisLimiter], limit: int) -> None:
        self._reactor = reactor
        self._limiters = limiters
        self._limited = [key("loaded", rpm=limit)]
        self.admitted = self.refused = self.unavailable = 0
        self.wrong: list[Exception] = []

    async def once(self) -> None:
        """Ask five times in each process, and wait for the answers."""
        asked = [each.admit(self._limited, "", 0, 0, NOON) for each in self._limiters for _ in range(5)]
        result: Any
        for succeeded, result in await DeferredList(asked, consumeErrors=True):
            if succeeded:
                self.admitted += 1
            elif isinstance(result.value, RateLimitExceeded):
                self.refused += 1
            elif isinstance(result.value, LimitsUnavailable):
                self.unavailable += 1
            else:
                self.wrong.append(result.value)
        await deferLater(self._reactor, 0.01)


def count_on(server: PrivateRedis) -> int:
    """Return how many requests of the loaded key a server counts."""
    for name in server.names():
        if "rpm:key:6:loaded" in name:
            return int(server.command("HGET", name, "used").split(b"\r\n")[1])
    return 0


async def fail_over(
    reactor: Any, limiters: list[RedisLimiter], old: PrivateRedis, new: PrivateRedis, stop: Callable[[], None]
) -> tuple[Load, int]:
    """Load two processes, take the master away, and load on until the limit is reached; return what was lost."""
    load = Load(reactor, limiters, LIMIT)
    for _ in range(40):
        await load.once()
    before = load.admitted
    assert before == 40 * 5 * len(limiters)
    stop()
    lost = before - count_on(new)
    deadline = reactor.seconds() + PATIENCE
    while not load.refused:
        await load.once()
        assert reactor.seconds() < deadline, (load.admitted, load.unavailable)
    return load, lost


@pytest.mark.parametrize("how", ["killed", "hung"])
@pytest_twisted.ensureDeferred
async def test_sentinels_name_the_next_master_and_the_limit_holds(
    reactor: Any, replicated: Replicated, make_limiter: MakeLimiter, how: str
) -> None:
    limiters = [await make_limiter(replicated.place) for _ in range(2)]
    held = await limiters[0].admit([key("held", parallel=1)], "", 0, 0, NOON)
    await deferLater(reactor, 0.2)
    stop = replicated.master.stop if how == "killed" else replicated.master.pause
    load, lost = await fail_over(reactor, limiters, replicated.master, replicated.replica, stop)
    assert not load.wrong
    assert load.unavailable, "while there is no master, requests are refused as the setting says"
    # A lost request was admitted and is not counted; none is counted twice.
    assert load.admitted + lost >= LIMIT
    assert load.admitted <= LIMIT + lost + 10 * len(limiters), (load.admitted, lost)
    assert lost <= 10 * len(limiters), "what the last two turns admitted"
    with pytest.raises(RateLimitExceeded):
        await limiters[1].admit([key("held", parallel=1)], "", 0, 0, NOON)
    limiters[0].settle(held, 0, 0, NOON)
    await until(reactor, lambda: not limiters[0].unconfirmed)
    await limiters[1].admit([key("held", parallel=1)], "", 0, 0, NOON)
    if how == "hung":
        # It believes to be the master still, until the Sentinels tell it.
        replicated.master.resume()
        await deferLater(reactor, 1.0)
        assert count_on(replicated.replica) >= LIMIT
        with pytest.raises(RateLimitExceeded):
            await limiters[1].admit([key("loaded", rpm=LIMIT)], "", 0, 0, NOON)


@pytest_twisted.ensureDeferred
async def test_a_planned_failover_loses_next_to_nothing_where_a_master_needs_its_replica(
    reactor: Any, replicated: Replicated, make_limiter: MakeLimiter
) -> None:
    """A master admits until Sentinel makes it a replica, seconds after the other became one, unless it may not."""
    replicated.master.command("CONFIG", "SET", "min-replicas-to-write", "1")
    limiter = await make_limiter(replicated.place)
    load = Load(reactor, [limiter], LIMIT)
    for _ in range(20):
        await load.once()
    assert replicated.named() == replicated.master.port
    replicated.sentinels[0].command("SENTINEL", "FAILOVER", "limits")
    deadline = reactor.seconds() + PATIENCE
    while not load.refused:
        await load.once()
        assert reactor.seconds() < deadline
    assert not load.wrong
    wait_until(lambda: replicated.named() == replicated.replica.port)
    assert load.admitted <= LIMIT + 20
    assert count_on(replicated.replica) >= LIMIT


@pytest_twisted.ensureDeferred
async def test_the_probe_says_which_master_it_found_and_tells_no_password(
    reactor: Any, replicated: Replicated, cluster: Cluster
) -> None:
    program = "Valkey" if "valkey" in replicated.master.program else "Redis"
    for place, master in ((replicated.place, replicated.master), (cluster.place, cluster.owner(SLOT))):
        found = await look_at_redis(reactor, place, PATIENCE)
        address, version, role = found.split(", ")
        assert (address, role) == (f"127.0.0.1:{master.port}", "master with 1 replica")
        assert re.fullmatch(program + r" [0-9]+\.[0-9]+\.[0-9]+", version)
    wrong: tuple[tuple[RedisPlace, str], ...] = (
        (attrs.evolve(replicated.place, service="nobody"), "it knows no master that is called nobody"),
        (replicated.replica.server, "it is a replica"),
        (RedisCluster((replicated.master.server,)), "cluster support disabled"),
        (attrs.evolve(replicated.place, sentinels=(replicated.master.server,)), "unknown command"),
    )
    for unusable, reason in wrong:
        with pytest.raises(RedisUnavailable, match=reason) as caught:
            await look_at_redis(reactor, unusable, PATIENCE)
        assert replicated.master.password not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_cluster_counts_and_its_replica_takes_over(
    reactor: Any, cluster: Cluster, make_limiter: MakeLimiter
) -> None:
    limiters = [await make_limiter(cluster.place) for _ in range(2)]
    owner = cluster.owner(SLOT)
    replica = cluster.nodes[cluster.nodes.index(owner) + 3]
    load = Load(reactor, limiters, LIMIT)
    for _ in range(40):
        await load.once()
    assert load.admitted == 400
    assert count_on(owner) == 400
    assert all(name.startswith("{vllm-passthrough}:") for name in owner.names())
    owner.stop()
    deadline = reactor.seconds() + PATIENCE
    while not load.refused:
        await load.once()
        assert reactor.seconds() < deadline, (load.admitted, load.unavailable)
    assert not load.wrong
    assert LIMIT - 20 <= load.admitted <= LIMIT + 20
    assert count_on(replica) >= LIMIT


@pytest_twisted.ensureDeferred
async def test_a_slot_that_moves_is_followed(reactor: Any, cluster: Cluster, make_limiter: MakeLimiter) -> None:
    limiter = await make_limiter(cluster.place, on_loss="local")
    owner = cluster.owner(SLOT)
    [other, *_] = [node for node in cluster.nodes[:3] if node is not owner]
    identity = other.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()
    for name in owner.names():
        owner.command("DEL", name)
    for node in (other, owner, *cluster.nodes[:3]):
        node.command("CLUSTER", "SETSLOT", str(SLOT), "NODE", identity)
    assert await limiter.admit([key(rpm=1)], "", 0, 0, NOON)
    await until(reactor, lambda: limiter.is_ready and any("process" in name for name in other.names()))
    assert await limiter.admit([key(rpm=1)], "", 0, 0, NOON)
    with pytest.raises(RateLimitExceeded):
        await limiter.admit([key(rpm=1)], "", 0, 0, NOON)
