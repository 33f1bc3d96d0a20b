"""Limits in a real Redis: the contract, its loss and return, processes that are killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, DeferredList, ensureDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, eventAsText
from twisted.logger import capturedLogs as captured_logs

from benchmarks.free_ports import free_port
from tests.ratelimit.limiter_contract import NOON, LimiterContract, key
from tests.ratelimit.supervised.gateway_in_memory import GatewayInMemory
from tests.self_signed import self_signed_pem
from tests.services.private_redis import PrivateRedis
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import RedisServer
from twisted_vllm.errors import BudgetExceeded, LimitsUnavailable, RateLimitExceeded
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.redis.limiter import RedisLimiter
from twisted_vllm.ratelimit.reservation import Reservation

#: a clock that the tests set, in a key of theirs
CLOCK = "local function clock() return tonumber(redis.call('GET', 'test-clock')) end"
PATIENCE_SECONDS = 10.0

MakeLimiter = Callable[..., Coroutine[Any, Any, RedisLimiter]]


async def until(reactor: Any, condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = reactor.seconds() + PATIENCE_SECONDS
    while not condition():
        assert reactor.seconds() < deadline
        await deferLater(reactor, 0.01, lambda: None)


class RedisDriver:
    def __init__(self, limiter: RedisLimiter, redis: PrivateRedis) -> None:
        self.now = NOON
        self.limiter = limiter
        self._redis = redis
        self._told = 0.0

    def _tell_the_time(self) -> None:
        if self._told != self.now:
            self._told = self.now
            self._redis.command("SET", "test-clock", f"{self.now * 1e6:.0f}")

    async def admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int) -> Reservation:
        self._tell_the_time()
        return await self.limiter.admit(limited, model, tokens, cost, self.now)

    async def settle(self, reservation: Reservation, tokens: int, cost: int) -> None:
        self._tell_the_time()
        self.limiter.settle(reservation, tokens, cost, self.now)

    def check(self, limited: Sequence[Limited]) -> None:
        self._tell_the_time()
        self.limiter.check(limited, self.now)

    async def would_admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int) -> None:
        self._tell_the_time()
        await self.limiter.would_admit(limited, model, tokens, cost, self.now)


class Stranger(Factory):
    """Keeps what it is sent."""

    noisy = False

    def __init__(self) -> None:
        self.received = b""

    def buildProtocol(self, addr: Any) -> Protocol:
        return StrangersConnection(self)


class StrangersConnection(Protocol):
    def __init__(self, stranger: Stranger) -> None:
        self._stranger = stranger

    def dataReceived(self, data: bytes) -> None:
        self._stranger.received += data


@pytest.fixture
def make_limiter(reactor: Any, redis: PrivateRedis) -> Iterator[MakeLimiter]:
    """Make limiters on the private Redis, each as a process of its own would have one; they are stopped at the end."""
    made: list[RedisLimiter] = []

    async def make(server: RedisServer | None = None, *, wait: bool = True, **options: Any) -> RedisLimiter:
        defaults: dict[str, Any] = {"timeout": 5.0, "on_loss": "refuse", "local": LocalLimiter()}
        limiter = RedisLimiter(reactor, server or redis.server, **(defaults | options))
        made.append(limiter)
        limiter.start()
        if wait:
            await until(reactor, lambda: limiter.is_ready)
        return limiter

    yield make
    for limiter in made:
        pytest_twisted.blockon(limiter.stop())


class TestRedisLimiter(LimiterContract):
    @pytest.fixture
    def driver(self, make_limiter: MakeLimiter, redis: PrivateRedis) -> RedisDriver:
        limiter = pytest_twisted.blockon(ensureDeferred(make_limiter(clock=CLOCK)))
        return RedisDriver(limiter, redis)


async def admitted(limiter: RedisLimiter, *limited: Limited, tokens: int = 0, cost: int = 0) -> Reservation:
    return await limiter.admit(limited, "", tokens, cost, NOON)


async def refused(limiter: RedisLimiter, *limited: Limited, tokens: int = 0, cost: int = 0) -> Exception:
    with pytest.raises((RateLimitExceeded, BudgetExceeded, LimitsUnavailable)) as refusal:
        await limiter.admit(limited, "", tokens, cost, NOON)
    return refusal.value


def texts(events: Sequence[LogEvent]) -> list[str]:
    return [text for event in events if "count" in (text := eventAsText(event, includeTimestamp=False))]


@pytest_twisted.ensureDeferred
async def test_two_processes_share_every_limit(make_limiter: MakeLimiter) -> None:
    one, two = await make_limiter(), await make_limiter()
    first = await admitted(one, key(parallel=1))
    await refused(two, key(parallel=1))
    one.settle(first, 0, 0, NOON)
    await admitted(one, key("flush"))
    await admitted(two, key(parallel=1))
    await admitted(one, key("a", rpm=1, tpm=10), tokens=10)
    await refused(two, key("a", rpm=1))
    await refused(two, key("a", tpm=10), tokens=1)
    spent = await admitted(one, key("b", max_budget=10), cost=10)
    await refused(two, key("b", max_budget=10), cost=1)
    one.settle(spent, 0, 4, NOON)
    await admitted(one, key("flush"))
    await admitted(two, key("b", max_budget=10), cost=6)


@pytest_twisted.ensureDeferred
async def test_a_look_knows_the_spend_in_the_database_and_leaves_the_rest_to_redis(make_limiter: MakeLimiter) -> None:
    limiter = await make_limiter()
    limiter.budget_loaded("key", "k1", 10, 0)
    await admitted(limiter, key("a", rpm=1))
    limiter.check([key("a", rpm=1)], NOON)
    with pytest.raises(BudgetExceeded):
        limiter.check([key(max_budget=10)], NOON)
    limiter.check([key(max_budget=11)], NOON)


@pytest.mark.parametrize(("on_loss", "error"), [("refuse", LimitsUnavailable), ("local", RateLimitExceeded)])
@pytest_twisted.ensureDeferred
async def test_a_look_without_redis_does_as_on_loss_says(
    make_limiter: MakeLimiter, on_loss: str, error: type[Exception]
) -> None:
    limiter = await make_limiter(wait=False, on_loss=on_loss)
    with pytest.raises(error):
        limiter.check([key(rpm=0)], NOON)


@pytest_twisted.ensureDeferred
async def test_every_key_expires_and_has_the_gateway_s_name(make_limiter: MakeLimiter, redis: PrivateRedis) -> None:
    limiter = await make_limiter()
    who = key(rpm=5, tpm=50, parallel=5, model_rpm={"m": 5}, model_tpm={"m": 50}, max_budget=50, budget_duration="1d")
    held = await limiter.admit([who], "m", 5, 5, NOON)
    names = redis.names()
    assert len(names) == 8
    for name in names:
        assert name.startswith("vllm-passthrough:")
        assert int(redis.command("PTTL", name).removeprefix(b":")) > 0
    limiter.settle(held, 5, 5, NOON)
    await admitted(limiter, key("flush"))
    assert "vllm-passthrough:parallel:key:2:k1" not in redis.names()


async def end_lease(reactor: Any, limiter: RedisLimiter, redis: PrivateRedis) -> None:
    """Bring the end of a lease forward, long before the process would renew it."""
    held = [name for name in redis.names() if limiter.process in name]
    assert len(held) == 2, "the lease, and the numbers of what was admitted"
    for name in held:
        assert redis.command("PEXPIRE", name, "1") == b":1"
    await until(reactor, lambda: not any(limiter.process in name for name in redis.names()))


@pytest_twisted.ensureDeferred
async def test_a_lease_is_short_and_renewed_while_its_process_runs(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    limiter = await make_limiter(lease=0.6)
    await admitted(limiter, key(parallel=1))
    process = limiter.process
    await deferLater(reactor, 1.0, lambda: None)
    assert limiter.process == process, "it was renewed"
    [lease] = [name for name in redis.names() if name.endswith(f"process:{process}")]
    assert 0 < int(redis.command("PTTL", lease).removeprefix(b":")) <= 600
    await refused(limiter, key(parallel=1))


@pytest_twisted.ensureDeferred
async def test_a_process_that_is_gone_gives_back_what_it_held(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    gone, here = await make_limiter(), await make_limiter()
    await admitted(gone, key(parallel=1, max_budget=10), cost=10)
    await refused(here, key(parallel=1))
    await refused(here, key(max_budget=10))
    # It is gone, and renews nothing any more.
    await end_lease(reactor, gone, redis)
    await admitted(here, key(parallel=1, max_budget=10), cost=10)
    await refused(here, key(parallel=1))


@pytest_twisted.ensureDeferred
async def test_a_process_that_was_asleep_begins_again_and_gives_back_nothing_twice(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    asleep, here = await make_limiter(on_loss="local"), await make_limiter()
    old = await admitted(asleep, key(parallel=1))
    await end_lease(reactor, asleep, redis)
    await admitted(here, key(parallel=1))
    with captured_logs() as events:
        await admitted(asleep, key("other"))
        await until(reactor, lambda: asleep.is_ready)
    assert "the lease of this process ended" in texts(events)[0]
    asleep.settle(old, 0, 0, NOON)
    await refused(asleep, key(parallel=1))


@pytest_twisted.ensureDeferred
async def test_while_redis_is_away_each_process_counts_for_itself_and_says_so_once(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    limiter = await make_limiter(on_loss="local")
    held = await admitted(limiter, key(parallel=1))
    with captured_logs() as events:
        redis.stop()
        try:
            local = await admitted(limiter, key(parallel=1))
            assert isinstance(await refused(limiter, key(parallel=1)), RateLimitExceeded)
            limiter.settle(held, 0, 0, NOON)
        finally:
            redis.start()
        await until(reactor, lambda: limiter.is_ready)
    said = texts(events)
    assert len(said) == 2
    assert f"redis://127.0.0.1:{redis.port}/2 does not count limits" in said[0]
    assert "this process counts limits for itself" in said[0]
    assert "counts limits again" in said[1]
    assert redis.password not in repr(events)
    await admitted(limiter, key(parallel=1))
    limiter.settle(local, 0, 0, NOON)
    await refused(limiter, key(parallel=1))


@pytest_twisted.ensureDeferred
async def test_while_redis_is_away_the_supervisor_counts_for_its_workers(
    reactor: Any, make_limiter: MakeLimiter
) -> None:
    gateway = GatewayInMemory()
    workers = [gateway.start(1), gateway.start(2)]
    with captured_logs() as events:
        limiters = [
            await make_limiter(
                RedisServer("127.0.0.1", free_port()), wait=False, on_loss="local", fallback=worker.counting.limiter
            )
            for worker in workers
        ]
        limits = key(rpm=5, parallel=4)
        asked = [limiters[number % 2].admit((limits,), "", 0, 0, NOON) for number in range(8)]
        gateway.exchange()
        found = await DeferredList(asked, consumeErrors=True)
        assert sum(is_admitted for is_admitted, _ in found) == 4
        # a client that goes while it waits
        gone = limiters[0].admit((limits,), "", 0, 0, NOON)
        gone.addErrback(lambda failure: failure.trap(CancelledError))
        gone.cancel()
        for number, (is_admitted, reservation) in enumerate(found):
            if is_admitted:
                assert isinstance(reservation, Reservation)
                limiters[number % 2].settle(reservation, 0, 0, NOON)
        gateway.exchange()
        assert gateway.limiter.in_flight == 0
        await until(reactor, lambda: len(texts(events)) == 2)
    assert all("this gateway's supervisor counts limits" in text for text in texts(events))


@pytest_twisted.ensureDeferred
async def test_while_redis_is_away_requests_with_limits_are_refused_where_that_is_wanted(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    limiter = await make_limiter(on_loss="refuse")
    with captured_logs() as events:
        redis.stop()
        try:
            error = await refused(limiter, key(rpm=1))
            assert isinstance(error, LimitsUnavailable)
            assert (error.status, error.retry_after) == (503, 1)
            await admitted(limiter)
        finally:
            redis.start()
        await until(reactor, lambda: limiter.is_ready)
    assert "requests with limits are refused" in texts(events)[0]
    await admitted(limiter, key(rpm=1))


@pytest_twisted.ensureDeferred
async def test_a_redis_that_hangs_is_waited_for_no_longer_than_allowed_and_leaks_nothing(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    limiter = await make_limiter(on_loss="local", timeout=0.25)
    held = await admitted(limiter, key(parallel=2, max_budget=10), cost=5)
    redis.pause()
    try:
        begun = reactor.seconds()
        with captured_logs() as events:
            await admitted(limiter, key(parallel=2, max_budget=10), cost=5)
            assert reactor.seconds() - begun < 2
            limiter.settle(held, 0, 0, NOON)
            at_once = limiter.admit([key(parallel=2)], "", 0, 0, NOON)
            assert at_once.called, "from now on nobody waits"
            await at_once
    finally:
        redis.resume()
    await until(reactor, lambda: limiter.is_ready)
    assert "it gave no answer for 0.25 seconds" in texts(events)[0]
    # Neither the admission that was asked for in vain nor the one that ended meanwhile holds anything.
    await until(reactor, lambda: not limiter.unconfirmed)
    await admitted(limiter, key(parallel=1, max_budget=10), cost=10)


@pytest_twisted.ensureDeferred
async def test_a_process_that_was_busy_itself_does_not_take_redis_for_away(make_limiter: MakeLimiter) -> None:
    limiter = await make_limiter(timeout=0.25)
    with captured_logs() as events:
        for busy in (0.1, 0.26, 0.3, 0.36, 0.6, 1.1):
            asked = limiter.admit([key()], "", 0, 0, NOON)
            time.sleep(busy)
            await asked
    assert texts(events) == []


@pytest_twisted.ensureDeferred
async def test_a_long_line_of_requests_is_no_sign_that_redis_is_away(make_limiter: MakeLimiter) -> None:
    # the line is longer than the timeout, and each answer comes well within it, also where others use the machine
    limiter = await make_limiter(timeout=1.0)
    with captured_logs() as events:
        asked = [limiter.admit([key(rpm=700)], "", 0, 0, NOON) for _ in range(6000)]
        results = await DeferredList(asked, consumeErrors=True)
    assert sum(succeeded for succeeded, _ in results) == 700
    assert texts(events) == []


@pytest_twisted.ensureDeferred
async def test_a_settlement_that_a_new_master_lacks_is_sent_again(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    limiter, other = await make_limiter(), await make_limiter()
    held = await admitted(limiter, key(parallel=1, max_budget=10), cost=10)
    names = sorted(redis.names())
    copies = [
        redis.command(
            "EVAL",
            "return redis.call('DUMP', KEYS[1]):gsub('.', function(c) return string.format('%02x', c:byte()) end)",
            "1",
            name,
        )
        for name in names
    ]
    limiter.settle(held, 0, 4, NOON)
    await until(reactor, lambda: not limiter.unconfirmed)
    # What a replica had that was behind: the settlement is not known.
    for name, copy in zip(names, copies, strict=True):
        lua = (
            "return redis.call('RESTORE', KEYS[1], 60000, (ARGV[1]:gsub('..', function(h) "
            "return string.char(tonumber(h, 16)) end)), 'REPLACE')"
        )
        redis.command("EVAL", lua, "1", name, copy.split(b"\r\n")[1].decode())
    await refused(other, key(parallel=1))
    redis.command("CLIENT", "KILL", "TYPE", "normal")
    await until(reactor, lambda: not limiter.is_ready and not other.is_ready)
    await until(reactor, lambda: limiter.is_ready and other.is_ready and not limiter.unconfirmed)
    await admitted(other, key(parallel=1, max_budget=10), cost=6)
    await refused(other, key(max_budget=10), cost=1)


@pytest_twisted.ensureDeferred
async def test_a_user_needs_the_rights_that_the_manual_names(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    rights = "+eval +evalsha +time +role +@read +@write +@connection"
    assert rights in (Path(__file__).parents[2] / "docs/limits.md").read_text()
    redis.command("ACL", "SETUSER", "gate", "reset", "on", ">hush", "~vllm-passthrough:*", *rights.split())
    try:
        limiter = await make_limiter(attrs.evolve(redis.server, username="gate", password=Secret("hush")))
        who = key(rpm=5, tpm=50, parallel=5, max_budget=50)
        limiter.settle(await admitted(limiter, who, tokens=5, cost=5), 5, 5, NOON)
        await until(reactor, lambda: not limiter.unconfirmed)
    finally:
        redis.command("ACL", "DELUSER", "gate")


@pytest_twisted.ensureDeferred
async def test_scripts_that_redis_forgot_are_sent_again(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    limiter = await make_limiter()
    redis.command("SCRIPT", "FLUSH")
    held = await admitted(limiter, key(rpm=2, parallel=1))
    redis.command("SCRIPT", "FLUSH")
    limiter.settle(held, 0, 0, NOON)
    await until(reactor, lambda: not limiter.unconfirmed)
    await admitted(limiter, key(rpm=2, parallel=1))


@pytest_twisted.ensureDeferred
async def test_a_redis_that_forgot_everything_is_not_given_back_what_it_does_not_know(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    limiter = await make_limiter(on_loss="local")
    old = await admitted(limiter, key(parallel=1))
    redis.command("FLUSHALL")
    with captured_logs():
        await admitted(limiter, key("other"))
        await until(reactor, lambda: limiter.is_ready)
    await admitted(limiter, key(parallel=1))
    limiter.settle(old, 0, 0, NOON)
    await refused(limiter, key(parallel=1))


@pytest_twisted.ensureDeferred
async def test_an_admission_that_nobody_waits_for_any_more_is_given_back(
    reactor: Any, make_limiter: MakeLimiter
) -> None:
    limiter = await make_limiter()
    waiting = limiter.admit([key(parallel=1)], "", 0, 0, NOON)
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    await admitted(limiter, key("flush"))
    await admitted(limiter, key(parallel=1))


@pytest_twisted.ensureDeferred
async def test_what_the_database_says_of_spending_is_told_to_redis(make_limiter: MakeLimiter) -> None:
    one, two = await make_limiter(), await make_limiter()
    one.budget_loaded("key", "k1", 90, 0)
    await refused(one, key(max_budget=100), cost=11)
    await refused(two, key(max_budget=100), cost=11)
    two.budget_reset("key", "k1", 10, 0)
    await refused(two, key(max_budget=100), cost=91)
    held = await admitted(one, key(max_budget=100), cost=90)
    one.settle(held, 0, 20, NOON)
    one.budget_committed("key", "k1", 20, 30, 0)
    await refused(one, key(max_budget=100), cost=71)
    await admitted(two, key(max_budget=100), cost=70)


@pytest_twisted.ensureDeferred
async def test_one_of_all_processes_warns_of_a_soft_budget(make_limiter: MakeLimiter) -> None:
    warnings: list[tuple[str, str, int, int]] = []

    def warn(*warning: Any) -> None:
        warnings.append(warning)

    limiters = [await make_limiter(on_soft_budget=warn) for _ in range(2)]
    for limiter in limiters * 2:
        limiter.settle(await admitted(limiter, key(soft_budget=10), cost=6), 0, 6, NOON)
    for limiter in limiters:
        await admitted(limiter, key("flush"))
    assert warnings == [("key", "k1", 12, 10)]


@pytest_twisted.ensureDeferred
async def test_a_redis_that_is_not_there_at_the_start_is_found_later(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    with captured_logs() as events:
        limiter = await make_limiter(RedisServer("127.0.0.1", free_port()), wait=False, on_loss="local")
        await admitted(limiter, key(rpm=1))
        await until(reactor, lambda: bool(texts(events)))
    assert "refused" in texts(events)[0].lower()


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_told_and_not_shown(
    reactor: Any, make_limiter: MakeLimiter, redis: PrivateRedis
) -> None:
    server = RedisServer("127.0.0.1", redis.port, password=Secret("wr:ng/P@ss"))
    with captured_logs() as events:
        limiter = await make_limiter(server, wait=False, on_loss="local")
        await until(reactor, lambda: bool(texts(events)))
    assert "WRONGPASS" in texts(events)[0]
    assert "wr:ng" not in repr(events) + repr(limiter.__dict__)


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's server side does
@pytest.mark.parametrize(("host", "why"), [("localhost", "certificate verify failed"), ("127.0.0.1", "mismatched_id")])
@pytest_twisted.ensureDeferred
async def test_a_stranger_behind_tls_is_not_told_the_password(
    reactor: Any, make_limiter: MakeLimiter, logged_failures: Any, host: str, why: str
) -> None:
    stranger = Stranger()
    port = reactor.listenSSL(
        0, stranger, PrivateCertificate.loadPEM(self_signed_pem()).options(), interface="127.0.0.1"
    )
    try:
        server = RedisServer(host, port.getHost().port, tls=True, password=Secret("hush"))
        with captured_logs() as events:
            limiter = await make_limiter(server, wait=False, on_loss="local")
            await until(reactor, lambda: bool(texts(events)))
        assert why in texts(events)[0]
        assert not limiter.is_ready
        await limiter.stop()
    finally:
        await port.stopListening()
    assert stranger.received == b""
    # Twisted logs a failure as well if the certificate is for another name
    logged_failures.flush()
