"""Three gateways on machines of their own, with one PostgreSQL and one Redis, behind a balancer, while parts fail."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import accumulate

import psycopg
import pytest

from tests.end_to_end.process_harness import FULL
from tests.end_to_end.twistd_harness import wait_until
from tests.services.balanced_callers import BROKEN, REFUSED, WHOLE, WRONG, Callers, Key
from tests.services.machines import DATABASE, REDIS, CannotHave, Hub, Programs
from tests.services.private_postgresql import find_binaries
from tests.services.private_redis import find_redis
from tests.whole_ledger import check_ledger
from twisted_vllm.usage.records import UsageRow, payer_of, target_of

#: seconds of each phase
LONG = 20.0 if FULL else 3.0
CALM, STOPPED, NO_DATABASE, NO_REDIS, SLOW, BACK = PHASES = (
    "calm", "one stopped", "one without database", "one without Redis", "one slow", "back",
)  # fmt: skip
#: each phase has a key with this limit of requests, and one with this budget in US dollars, and both are used up
RPM, BUDGET = 40, 2.0
#: streams that one key may have at a time, and how many want one
PARALLEL, WANTED = 3, 6
ROUTE = "/v1/chat/completions"
PICODOLLARS, MINUTE_US = 1e12, 60_000_000
#: requests of a key that a failing gateway may have in hand
FEW = 5
SETTINGS = {
    "limits_on_redis_loss": "refuse",
    # a request of some tokens costs a few cents
    "default_prices": {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01},
    "timeouts": {"database": 2},
    "limits": {"max_uncounted_requests": None},
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = None
    try:
        hub = Hub(3, Programs(find_binaries(), find_redis()), SETTINGS, ["--workers=2"])
        hub.start()
        yield hub
    except CannotHave as error:
        pytest.skip(str(error))
    finally:
        if hub is not None:
            hub.remove()


def make_keys(hub: Hub) -> dict[str, Key]:
    """Make the keys, and wait until every process knows them."""
    limits: dict[str, dict[str, float]] = {"plain": {}, "parallel": {"max_parallel_requests": PARALLEL}}
    for phase in PHASES:
        limits[f"rpm, {phase}"] = {"rpm_limit": RPM}
        limits[f"budget, {phase}"] = {"max_budget": BUDGET}
    keys = {alias: Key(alias, hub.gateways[0].make_key(key_alias=alias, **fields)) for alias, fields in limits.items()}
    for gateway in hub.gateways:
        for key in keys.values():
            # several times, for the several processes
            wait_until(lambda: all(gateway.get("/vllm/v1/models", key.secret) == 200 for _ in range(4)))  # noqa: B023 - called at once
    return keys


def live(hub: Hub, callers: Callers, keys: dict[str, Key]) -> None:
    """Let one part after the other fail and come back, under load."""
    stopped, without_database, without_redis = hub.gateways

    def begin(phase: str) -> None:
        callers.phase = phase
        callers.add(keys[f"rpm, {phase}"], threads=2, tokens=2, stream=False, pause=0.02)
        callers.add(keys[f"budget, {phase}"], threads=2, tokens=4, stream=False, pause=0.02)

    def last() -> None:
        """Let the phase be long, and until its keys have used up their limits."""
        time.sleep(LONG)
        phase = callers.phase
        wait_until(lambda: callers.codes(f"rpm, {phase}") >= {"rate_limit_exceeded"})
        wait_until(lambda: callers.codes(f"budget, {phase}") >= {"budget_exceeded"})

    begin(CALM)
    last()

    begin(STOPPED)
    assert stopped.process.terminate() == 0
    stopped.start()
    stopped.wait()
    last()

    begin(NO_DATABASE)
    without_database.cut(DATABASE)
    last()
    without_database.mend(DATABASE)

    begin(NO_REDIS)
    without_redis.cut(REDIS)
    last()
    assert without_redis.messages("does not count limits")
    without_redis.mend(REDIS)
    wait_until(lambda: without_redis.messages("counts limits again"))

    begin(SLOW)
    with stopped.slow():
        last()

    begin(BACK)
    last()


def counted(hub: Hub) -> int:
    """Return how many rows of chats the database has."""
    with psycopg.connect(hub.url()) as connection:
        [(rows,)] = connection.execute(
            "SELECT count(*) FROM vllm_passthrough_usage u JOIN vllm_passthrough_usage_targets t ON u.target = t.id "
            "WHERE t.route = %s",
            (ROUTE,),
        ).fetchall()
    return int(rows)


def test_limits_hold_and_no_row_is_lost_while_machines_fail_and_come_back(hub: Hub) -> None:
    keys = make_keys(hub)
    callers = Callers(hub.balancer)
    with callers.calling():
        callers.add(keys["plain"], threads=3, tokens=2, stream=False, pause=0.03)
        callers.add(keys["parallel"], threads=WANTED, tokens=15, stream=True, pause=0.01)
        live(hub, callers, keys)
    served = hub.served()
    # the gateway that had no database brings its rows without a restart
    wait_until(lambda: counted(hub) >= served)
    for each in hub.gateways:
        assert each.process.terminate() == 0

    for phase in PHASES:
        print(f"{phase}: {dict(callers.counts(phase=phase))}")
    check_clients(callers)
    rows = [row for row in check_ledger(hub.url()) if target_of(row.target).route == ROUTE]
    check_rows(callers, rows, served)
    check_limits(callers, rows)


def check_clients(callers: Callers) -> None:
    """Nobody saw more than a broken answer where a gateway ended, or a refusal that says when to come again."""
    assert [each for each in callers.answers if each.kind == WRONG] == []
    broken = [each for each in callers.answers if each.kind == BROKEN]
    assert {each.phase for each in broken} <= {STOPPED, SLOW}, broken
    for phase in PHASES:
        assert callers.counts("plain", phase)[WHOLE] > 3, phase
        assert not callers.counts("plain", phase)[REFUSED] or phase == STOPPED, phase
    assert "limits_unavailable" in callers.codes(f"rpm, {NO_REDIS}") | callers.codes(f"budget, {NO_REDIS}")


def check_rows(callers: Callers, rows: list[UsageRow], served: int) -> None:
    """Each request that reached the server has one row."""
    ids = Counter(row.id for row in rows)
    assert set(ids.values()) == {1}
    assert {each.id for each in callers.answers if each.kind == WHOLE} <= set(ids)
    assert sum(row.outcome == "completed" for row in rows) == served


def check_limits(callers: Callers, rows: list[UsageRow]) -> None:
    """No key got more than its limits allow, and each got what they allow unless its requests broke."""
    of_key = defaultdict[str, list[UsageRow]](list)
    for row in rows:
        of_key[payer_of(row.payer).key_name].append(row)
    for phase in PHASES:
        key, budget = f"rpm, {phase}", f"budget, {phase}"
        assert "rate_limit_exceeded" in callers.codes(key), phase
        assert most_in_a_minute(of_key[key]) <= RPM, phase
        # one that was counted while its gateway lost Redis or ended was not sent
        assert callers.counts(key)[WHOLE] >= RPM - FEW, phase
        spent = sum(row.cost for row in of_key[budget]) / PICODOLLARS
        assert "budget_exceeded" in callers.codes(budget), phase
        assert BUDGET / 2 < spent <= BUDGET, phase
        print(f"{phase}: {most_in_a_minute(of_key[key])} of {RPM} requests a minute, {spent:.3f} of {BUDGET} dollars")
    # the gateways' own times: a client may learn of an end when the next stream runs already
    for phase in ("", BACK):
        ids = {each.id for each in callers.of("parallel", phase)}
        streams = [row for row in rows if row.id in ids and row.first_byte_us is not None]
        assert most_at_once(streams) == PARALLEL, phase


def most_in_a_minute(rows: list[UsageRow]) -> int:
    """Return how many requests were certainly admitted within 60 seconds: each between its head and its first byte."""
    spans = sorted((row.time, row.time + (row.first_byte_us or row.total_us)) for row in rows)
    return max(sum(ended < began + MINUTE_US for _, ended in spans[at:]) for at, (began, _) in enumerate(spans))


def most_at_once(rows: list[UsageRow]) -> int:
    """Return how many requests were certainly in flight at the same time."""
    spans = [(row.time + (row.first_byte_us or 0), row.time + row.total_us) for row in rows]
    # at equal times, an end comes first
    steps = sorted(step for began, ended in spans for step in ((began, 1), (ended, -1)))
    return max(accumulate(change for _, change in steps))
