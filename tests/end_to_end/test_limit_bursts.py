"""Of a burst of requests, exactly as many begin as each limit allows, on one process and on two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import attrs
import pytest

from tests.end_to_end.limits_harness import BODY, MODEL, GatedServer, LimitingGateway, burst
from tests.end_to_end.process_harness import FULL, many_descriptors, served
from tests.end_to_end.twistd_harness import serving, wait_until
from twisted_vllm.usage.estimate import estimate_prompt

COUNT = 2_000 if FULL else 400
#: tokens, and as many dollars, that are reserved for one request
RESERVED = estimate_prompt(BODY) + 4


#: by the name of a limit: the limit, how many requests it admits at once, and the error code of the others
LIMITS: dict[str, tuple[dict[str, Any], int, str]] = {
    "rpm": ({"rpm_limit": 131}, 131, "rate_limit_exceeded"),
    "parallel": ({"max_parallel_requests": 57}, 57, "rate_limit_exceeded"),
    "tpm": ({"tpm_limit": 61 * RESERVED + RESERVED - 1}, 61, "rate_limit_exceeded"),
    "model_rpm": ({"model_rpm_limit": {MODEL: 89}}, 89, "rate_limit_exceeded"),
    "model_tpm": ({"model_tpm_limit": {MODEL: 1 * RESERVED}}, 1, "rate_limit_exceeded"),
    "budget": (
        {"max_budget": 43 * RESERVED + RESERVED - 1, "budget_duration": "30d"},
        43,
        "budget_exceeded",
    ),
}


@attrs.frozen
class Deployment:
    """Gateways that share a database, the server behind them, and a key for each of `LIMITS`."""

    server: GatedServer
    gateways: list[LimitingGateway]
    keys: dict[str, str]


@pytest.fixture(scope="module", params=["one process", "two on SQLite", "two on PostgreSQL"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("bursts")
    with ExitStack() as stack:
        variables = {}
        count = 1
        if request.param != "one process":
            count = 2
            variables["VLLM_PASSTHROUGH_REDIS_URL"] = redis_url(stack)
            variables["DATABASE_URL"] = f"sqlite:///{directory}/shared.sqlite3"
        if request.param == "two on PostgreSQL":
            variables["DATABASE_URL"] = postgresql_url(stack)
        stack.enter_context(many_descriptors(3 * COUNT + 500))
        server = GatedServer()
        port = stack.enter_context(served(server.serve)).port
        gateways = [
            # on a busy machine Redis takes its time to answer, and the counts are exact only while Redis counts
            LimitingGateway(directory / str(number), port, settings="  timeouts: {redis: 20}\n", **variables)
            for number in range(count)
        ]
        stack.enter_context(serving(*gateways))
        # the other process hears of new keys half a second later: wait for all of them together
        keys = {name: gateways[0].make_key(**limits) for name, (limits, _, _) in LIMITS.items()}
        wait_until(lambda: all(gateway.knows(key) for gateway in gateways for key in keys.values()))
        yield Deployment(server, gateways, keys)


def redis_url(stack: ExitStack) -> str:
    from tests.services.private_redis import PrivateRedis, find_redis

    binary = find_redis()
    if binary is None:
        pytest.skip("Redis' server program (redis-server) is not installed")
    redis = PrivateRedis(binary)
    stack.callback(redis.remove)
    redis.start()
    return redis.url


def postgresql_url(stack: ExitStack) -> str:
    from tests.services.private_postgresql import PrivatePostgresql, find_binaries

    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server programs (initdb, postgres) are not installed")
    try:
        postgresql = PrivatePostgresql(binaries)
    except LookupError as error:
        pytest.skip(str(error))
    stack.callback(postgresql.remove)
    postgresql.initialise()
    postgresql.start()
    return postgresql.make_database()


@pytest.mark.parametrize("name", LIMITS)
def test_a_burst_gets_exactly_what_is_allowed(deployment: Deployment, name: str) -> None:
    limits, expected, code = LIMITS[name]
    ports = [gateway.port for gateway in deployment.gateways]
    found = burst(ports, deployment.keys[name], COUNT, deployment.server, expected)
    print(f"{COUNT} requests at once, {limits}: {dict(found)}")
    assert deployment.server.taken == expected
    assert found == {(200, ""): expected, (429, code): COUNT - expected}
