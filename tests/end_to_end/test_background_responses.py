"""A background response is charged once: when its client learns of its end, or the gateway does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import MASTER_KEY, Gateway, eventually, request_bytes, server_at
from tests.end_to_end.ledger_harness import Columns, rows_in
from tests.end_to_end.messages import LAST, chunk
from tests.end_to_end.response_store import USAGE, ResponseStore
from twisted_vllm.config.metrics import MetricsSettings
from twisted_vllm.config.settings import LedgerSettings, ModelEntry, PriceList
from twisted_vllm.proxy import background_responses, stored_answer

RESPONSES = "/vllm/v1/responses"
#: one token costs a dollar
DOLLAR_A_TOKEN = PriceList(input_cost_per_token=Decimal(1), output_cost_per_token=Decimal(1))
DOLLAR = 10**12
LIMITS = {"max_parallel_requests": 1, "max_budget": 1000}
SMALL = {"model": "m", "input": "hi", "max_output_tokens": 20}


def priced(gateway_to: Any, server: ResponseStore, **settings: Any) -> Gateway:
    gateway: Gateway = gateway_to(server.port, default_prices=DOLLAR_A_TOKEN, **settings)
    return gateway


async def begin(gateway: Gateway, key: str, **fields: Any) -> str:
    body = {"model": "m", "input": "hi", "background": True, "max_output_tokens": 20, **fields}
    answer = await gateway.ask("POST", RESPONSES, key, body=body)
    assert answer.status == 200, answer.body
    assert answer.json["status"] == "queued"
    return str(answer.json["id"])


async def charged(reactor: Any, gateway: Gateway) -> None:
    await eventually(reactor, lambda: not len(gateway.service.wiring.background))
    assert gateway.limiter.in_flight == gateway.limiter.reserved == 0


async def rows_of(gateway: Gateway, route: str = "/v1/responses") -> list[Columns]:
    """Stop the gateway, and return its rows of a route."""
    await gateway.stop()
    return [row for rows in rows_in(gateway.database_file).values() for row in rows if row["route"] == route]


@pytest.mark.parametrize("value", [True, 1, "true", "on", "Yes"])
@pytest_twisted.ensureDeferred
async def test_its_client_s_look_at_the_end_charges_it(
    reactor: Any, stand_in: Any, gateway_to: Any, value: object
) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    key = await gateway.make_key(**LIMITS)
    made = await begin(gateway, key, background=value)
    assert gateway.limiter.in_flight == 1
    assert gateway.limiter.reserved > 20 * DOLLAR
    refused = await gateway.ask("POST", RESPONSES, key, body=SMALL)
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert (await gateway.ask("GET", f"{RESPONSES}/{made}", key)).json["status"] == "queued"
    server.finish(made)
    for _ in range(2):
        assert (await gateway.ask("GET", f"{RESPONSES}/{made}", key)).json["status"] == "completed"
    await charged(reactor, gateway)
    assert gateway.limiter.spent == 7 * DOLLAR
    gateway.pass_time(60)
    [row] = await rows_of(gateway)
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost"]) == (3, 4, 7 * DOLLAR)
    assert (row["method"], row["status"], row["outcome"], row["estimated"]) == ("POST", 200, "completed", 0)
    looks = rows_in(gateway.database_file)
    polls = [row for rows in looks.values() for row in rows if row["route"] == "/v1/responses/{id}"]
    assert [(row["total_tokens"], row["cost"]) for row in polls] == [(0, 0)] * 3


@pytest_twisted.ensureDeferred
async def test_nobody_looks_and_it_is_charged(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    made = await begin(gateway, await gateway.make_key(**LIMITS))
    metrics = (await gateway.ask("GET", "/metrics")).body
    assert b"\nvllm_passthrough_background_responses 1.0\n" in metrics
    gateway.pass_time(1)
    await eventually(reactor, lambda: server.count("GET") == 1)
    await eventually(reactor, lambda: gateway.service.wiring.background.polls == 0)
    assert gateway.limiter.in_flight == 1
    server.finish(made, "incomplete")
    gateway.pass_time(15)
    await charged(reactor, gateway)
    gateway.pass_time(600)
    assert server.count("GET") == 2
    [row] = await rows_of(gateway)
    assert (row["total_tokens"], row["outcome"]) == (7, "completed")
    # no client's request, no row
    assert len(rows_in(gateway.database_file)) == 1


@pytest.mark.parametrize("ledger", [True, False])
@pytest_twisted.ensureDeferred
async def test_metrics_have_its_tokens_once_it_is_charged(
    reactor: Any, stand_in: Any, gateway_to: Any, ledger: bool
) -> None:
    server = ResponseStore(stand_in())
    metrics = MetricsSettings(key_labels=5, litellm_names=True)
    gateway = priced(gateway_to, server, metrics=metrics, ledger=LedgerSettings(enabled=ledger))
    made = await begin(gateway, await gateway.make_key(key_alias="ada", **LIMITS))

    async def shown() -> list[str]:
        text = (await gateway.ask("GET", "/metrics")).body.decode()
        return [line for line in text.splitlines() if re.match(r"(vllm_passthrough|litellm)_\w*tokens", line)]

    assert await shown() == []
    server.finish(made)
    gateway.pass_time(1)
    await charged(reactor, gateway)
    found = await shown()
    for wanted in (
        r'vllm_passthrough_tokens_total\{model="\w+",type="completion"\} 4.0',
        r'vllm_passthrough_key_tokens_total\{key="ada",key_hash="\w{8}",type="prompt"\} 3.0',
        r'litellm_total_tokens_metric_total\{.*api_key_alias="ada".*\} 7.0',
    ):
        assert any(re.fullmatch(wanted, line) for line in found), wanted


@pytest_twisted.ensureDeferred
async def test_a_long_response_is_read_to_its_status(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    made = await begin(gateway, await gateway.make_key(**LIMITS))
    item = {"status": "in_progress", "text": '"status":"failed"' * 20_000, "usage": {"output_tokens": 1}}
    server.responses[made].update(output=[item])
    server.finish(made)
    gateway.pass_time(1)
    await charged(reactor, gateway)
    [row] = await rows_of(gateway)
    assert (row["total_tokens"], row["outcome"], row["estimated"]) == (7, "completed", 0)


@pytest_twisted.ensureDeferred
async def test_the_server_s_own_key_is_used(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server_at(server.port, api_key="sk-of-the-server"))
    await begin(gateway, await gateway.make_key())
    gateway.pass_time(1)
    await eventually(reactor, lambda: server.count("GET") == 1)
    assert server.heads[-1][b"authorization"] == b"Bearer sk-of-the-server"


@pytest_twisted.ensureDeferred
async def test_a_restart_in_between_charges_it_once(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    first = priced(gateway_to, server)
    key = await first.make_key(**LIMITS)
    made = await begin(first, key)
    # what a killed process leaves behind
    spool = first.settings.spool_directory
    kept = spool.with_name("kept")
    shutil.copytree(spool / "background", kept)
    assert await rows_of(first) == []
    database = {"database_url": first.settings.database_url}
    second = priced(gateway_to, server, **database)
    assert second.limiter.in_flight == 1
    assert second.limiter.reserved > 20 * DOLLAR
    refused = await second.ask("POST", RESPONSES, key, body=SMALL)
    assert refused.status == 429
    server.finish(made)
    second.pass_time(1)
    await charged(reactor, second)
    assert second.limiter.spent == 7 * DOLLAR
    await second.stop()
    # it was killed after the row, before its file was removed
    shutil.copytree(kept, spool / "background", dirs_exist_ok=True)
    third = priced(gateway_to, server, **database)
    third.pass_time(1)
    await eventually(reactor, lambda: not len(third.service.wiring.background))
    await third.stop()
    rows = [row for rows in rows_in(first.database_file).values() for row in rows]
    assert [(row["total_tokens"], row["cost"]) for row in rows if row["method"] == "POST"] == [(7, 7 * DOLLAR)]
    fourth = priced(gateway_to, server, **database)
    await fourth.ask("POST", RESPONSES, key, body=SMALL)
    assert fourth.limiter.spent == 14 * DOLLAR


@pytest_twisted.ensureDeferred
async def test_another_process_goes_on_with_what_one_leaves(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    first = priced(gateway_to, server)
    second = priced(gateway_to, server, database_url=first.settings.database_url)
    made = await begin(first, await first.make_key())
    second.pass_time(background_responses.TAKE_OVER_SECONDS)
    assert len(second.service.wiring.background) == 0
    await first.stop()
    server.finish(made)
    second.pass_time(background_responses.TAKE_OVER_SECONDS)
    second.clock.advance(2)
    await charged(reactor, second)
    await second.stop()
    assert [row["total_tokens"] for rows in rows_in(first.database_file).values() for row in rows] == [7]


@pytest_twisted.ensureDeferred
async def test_a_cut_stream_goes_on_and_is_charged(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    key = await gateway.make_key(**LIMITS)
    body = {"model": "m", "input": "hi", "background": True, "stream": True, "max_output_tokens": 20}
    client = await gateway.send(request_bytes("POST", RESPONSES, key, body=body))
    await client.until_received(b"response.output_text.delta")
    client.cut()
    await eventually(reactor, lambda: len(gateway.service.wiring.background) == 1)
    assert gateway.limiter.in_flight == 1
    [made] = server.responses
    server.finish(made, usage={"input_tokens": 3, "output_tokens": 20, "total_tokens": 23})
    gateway.pass_time(1)
    await charged(reactor, gateway)
    [row] = await rows_of(gateway)
    assert (row["total_tokens"], row["cost"], row["outcome"]) == (23, 23 * DOLLAR, "completed")
    assert row["stream"]


@pytest_twisted.ensureDeferred
async def test_a_stream_that_the_server_ends_with_an_error_is_not_followed(stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    key = await gateway.make_key(**LIMITS)
    client = await gateway.send(
        request_bytes("POST", RESPONSES, key, body={**SMALL, "background": True, "stream": True})
    )
    await client.until_received(b"response.output_text.delta")
    failure = b'event: response.failed\ndata: {"type":"response.failed"}\n\n'
    server.stand_in.connections[0].send(chunk(failure) + LAST)
    await client.until_received(b"response.failed")
    assert gateway.limiter.in_flight == len(gateway.service.wiring.background) == 0
    [row] = await rows_of(gateway)
    assert (row["outcome"], row["completion_tokens"]) == ("upstream_error", 5)


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_before_the_answer_is_charged(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    server.mute = True
    body = {"model": "m", "input": "hi", "background": True, "max_output_tokens": 20}
    key = await gateway.make_key(**LIMITS)
    client = await gateway.send(request_bytes("POST", RESPONSES, key, body=body))
    await eventually(reactor, lambda: server.requests)
    client.cut()
    await eventually(reactor, lambda: len(gateway.service.wiring.background) == 1)
    server.mute = False
    [made] = gateway.service.wiring.background.ids
    server.responses[made] = {"id": made}
    server.finish(made)
    gateway.pass_time(1)
    await charged(reactor, gateway)
    assert gateway.limiter.spent == 7 * DOLLAR


@pytest_twisted.ensureDeferred
async def test_what_the_server_never_had_counts_as_a_request_that_was_cut(
    reactor: Any, stand_in: Any, gateway_to: Any
) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    server.mute = True
    body = {"model": "m", "input": "hi", "background": True, "max_output_tokens": 20}
    client = await gateway.send(request_bytes("POST", RESPONSES, await gateway.make_key(**LIMITS), body=body))
    await eventually(reactor, lambda: server.requests)
    client.cut()
    await eventually(reactor, lambda: len(gateway.service.wiring.background) == 1)
    server.mute = False
    await pass_looks(reactor, gateway, server, 3)
    await charged(reactor, gateway)
    [row] = await rows_of(gateway)
    assert (row["outcome"], row["completion_tokens"], row["estimated"]) == ("client_disconnected", 0, 1)
    assert row["prompt_tokens"] > 0


async def next_look(reactor: Any, gateway: Gateway, server: ResponseStore) -> None:
    """Advance the clock to the gateway's next look, until it has reached the server."""
    looks = server.count("GET")
    while not gateway.service.wiring.background.polls:
        gateway.clock.advance(0.25)
    await eventually(reactor, lambda: server.count("GET") > looks)


async def pass_looks(reactor: Any, gateway: Gateway, server: ResponseStore, looks: int) -> None:
    """Let the gateway look so often, and get an answer."""
    for _ in range(looks):
        await next_look(reactor, gateway, server)
        await eventually(reactor, lambda: gateway.service.wiring.background.polls == 0)


@pytest_twisted.ensureDeferred
async def test_a_response_that_the_server_lost_is_charged_as_reserved(
    reactor: Any, stand_in: Any, gateway_to: Any
) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    await begin(gateway, await gateway.make_key(**LIMITS))
    reserved = gateway.limiter.reserved
    server.responses.clear()
    await pass_looks(reactor, gateway, server, 3)
    await charged(reactor, gateway)
    [row] = await rows_of(gateway)
    assert row["cost"] == pytest.approx(reserved, abs=10 * DOLLAR)
    assert (row["completion_tokens"], row["estimated"], row["outcome"]) == (20, 1, "upstream_failed")


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_gone_does_not_hold_the_reservation_for_ever(
    reactor: Any, stand_in: Any, gateway_to: Any
) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    await begin(gateway, await gateway.make_key(**LIMITS))
    server.mute = True
    background = gateway.service.wiring.background
    while len(background):
        await next_look(reactor, gateway, server)
        gateway.pass_time(stored_answer.TIMEOUT)
        await eventually(reactor, lambda: background.polls == 0)
    assert background_responses.GONE_SECONDS <= gateway.clock.seconds() < background_responses.GONE_SECONDS + 120
    await charged(reactor, gateway)
    [row] = await rows_of(gateway)
    assert (row["completion_tokens"], row["estimated"]) == (20, 1)


@pytest_twisted.ensureDeferred
async def test_a_cancelled_response_costs_at_most_what_was_possible(
    reactor: Any, stand_in: Any, gateway_to: Any
) -> None:
    """VLLM reports no usage of it."""
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    key = await gateway.make_key(max_budget=100_000)
    soon, late = await begin(gateway, key, max_output_tokens=1900), ""
    gateway.clock.advance(0.5)
    assert (await gateway.ask("POST", f"{RESPONSES}/{soon}/cancel", key)).json["status"] == "cancelled"
    await charged(reactor, gateway)
    late = await begin(gateway, key, max_output_tokens=1900)
    gateway.pass_time(14)
    assert (await gateway.ask("POST", f"{RESPONSES}/{late}/cancel", key)).json["status"] == "cancelled"
    await charged(reactor, gateway)
    rows = await rows_of(gateway)
    assert [(row["completion_tokens"], row["estimated"]) for row in rows] == [(501, 1), (1900, 1)]


@pytest_twisted.ensureDeferred
async def test_a_failed_response_costs_nothing(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    made = await begin(gateway, await gateway.make_key(**LIMITS))
    server.finish(made, "failed", None)
    gateway.pass_time(1)
    await charged(reactor, gateway)
    [row] = await rows_of(gateway)
    assert (row["cost"], row["outcome"]) == (0, "upstream_error")


@pytest_twisted.ensureDeferred
async def test_a_request_that_the_server_refuses_is_not_followed(stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    key = await gateway.make_key(**LIMITS)
    body = {**SMALL, "background": True, "refuse": True}
    assert (await gateway.ask("POST", RESPONSES, key, body=body)).status == 400
    assert gateway.limiter.in_flight == len(gateway.service.wiring.background) == 0
    [row] = await rows_of(gateway)
    assert (row["status"], row["cost"]) == (400, 0)


@pytest_twisted.ensureDeferred
async def test_a_server_that_cannot_be_reached_has_nothing_to_follow(gateway_to: Any) -> None:
    gateway = gateway_to(free_port(), default_prices=DOLLAR_A_TOKEN)
    key = await gateway.make_key(**LIMITS)
    assert (await gateway.ask("POST", RESPONSES, key, body={**SMALL, "background": True})).status == 502
    assert gateway.limiter.in_flight == len(gateway.service.wiring.background) == 0
    [row] = await rows_of(gateway)
    assert (row["status"], row["cost"]) == (502, 0)


@pytest.mark.parametrize("store", ["off", "no", "0", False, None])
@pytest_twisted.ensureDeferred
async def test_a_background_response_that_is_not_stored_is_refused(
    stand_in: Any, gateway_to: Any, store: object
) -> None:
    """VLLM accepts the texts, and then never says that it has ended."""
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    body = {"model": "m", "input": "hi", "background": True, "store": store}
    answer = await gateway.ask("POST", RESPONSES, await gateway.make_key(), body=body)
    assert (answer.status, answer.error["param"]) == (400, "store")
    assert server.requests == []


@pytest_twisted.ensureDeferred
async def test_no_more_are_followed_than_there_is_room_for(
    stand_in: Any, gateway_to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_responses, "MAX_OF_KEY", 2)
    monkeypatch.setattr(background_responses, "MAX_FOLLOWED", 3)
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    one, two = await gateway.make_key(), await gateway.make_key()
    body = {"model": "m", "input": "hi", "background": True}
    found = [(await gateway.ask("POST", RESPONSES, key, body=body)).status for key in (one, one, one, two, two)]
    assert found == [200, 200, 429, 200, 429]
    answer = await gateway.ask("POST", RESPONSES, two, body=body)
    assert answer.error["code"] == "too_many_background_responses"
    assert answer.header("retry-after")
    assert len(server.bodies) == 3


@pytest_twisted.ensureDeferred
async def test_an_administrator_s_response_is_counted_too(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    made = await begin(gateway, MASTER_KEY)
    server.finish(made)
    gateway.pass_time(1)
    await charged(reactor, gateway)
    [row] = await rows_of(gateway)
    assert (row["total_tokens"], row["cost"]) == (7, 7 * DOLLAR)


@pytest_twisted.ensureDeferred
async def test_limits_hold_without_a_ledger(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server, ledger=LedgerSettings(enabled=False))
    key = await gateway.make_key(max_parallel_requests=1)
    made = await begin(gateway, key)
    assert gateway.limiter.in_flight == 1
    server.finish(made)
    gateway.pass_time(1)
    await charged(reactor, gateway)
    assert not (gateway.settings.spool_directory / "background").exists()


@pytest_twisted.ensureDeferred
async def test_a_server_that_left_the_configuration(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server, other = ResponseStore(stand_in()), ResponseStore(stand_in())
    entries = (ModelEntry("m", "m", server_at(server.port)),)
    first = gateway_to(other.port, models=entries, default_prices=DOLLAR_A_TOKEN)
    await begin(first, await first.make_key(**LIMITS))
    await first.stop()
    second = priced(gateway_to, other, database_url=first.settings.database_url)
    second.pass_time(1)
    await charged(reactor, second)
    await second.stop()
    [[row]] = rows_in(first.database_file).values()
    assert (row["estimated"], row["outcome"], row["server"]) == (1, "upstream_failed", f"127.0.0.1:{server.port}")


@pytest_twisted.ensureDeferred
async def test_a_damaged_file_is_passed_over(stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    first = gateway_to(server.port)
    await begin(first, await first.make_key())
    await ensureDeferred(first.clean_up())
    directory = first.settings.spool_directory / "background"
    for file in directory.glob("*.pending"):
        file.write_bytes(file.read_bytes()[:-20])
    second = gateway_to(server.port, database_url=first.settings.database_url)
    assert len(second.service.wiring.background) == 0
    assert "is damaged" in second.log_text()
    assert not list(directory.glob("*.pending"))


@pytest.fixture
def private_redis() -> Iterator[Any]:
    from tests.services.private_redis import PrivateRedis, find_redis

    binary = find_redis()
    if binary is None:
        pytest.skip("Redis' server program (redis-server) is not installed")
    redis = PrivateRedis(binary)
    redis.start()
    yield redis
    redis.remove()


@pytest_twisted.ensureDeferred
async def test_a_reservation_in_redis_is_made_again(
    reactor: Any, stand_in: Any, gateway_to: Any, private_redis: Any
) -> None:
    """At the start there is no connection to Redis yet."""
    server = ResponseStore(stand_in())
    shared = {"redis": private_redis.server, "limits_on_redis_loss": "refuse"}

    async def started(**settings: Any) -> Gateway:
        gateway = priced(gateway_to, server, **shared, **settings)
        limiter: Any = gateway.service.wiring.accounting.limiter
        await eventually(reactor, lambda: limiter.is_ready)
        return gateway

    first = await started()
    key = await first.make_key(**LIMITS)
    made = await begin(first, key)
    await first.stop()
    second = await started(database_url=first.settings.database_url)
    await next_look(reactor, second, server)
    background = second.service.wiring.background
    await eventually(reactor, lambda: background.polls == 0)
    refused = await second.ask("POST", RESPONSES, key, body=SMALL)
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    server.finish(made)
    await next_look(reactor, second, server)
    await eventually(reactor, lambda: not len(background))
    answer = await second.ask("POST", RESPONSES, key, body=SMALL)
    assert answer.status == 200


@pytest.mark.parametrize("background", [False, True])
@pytest_twisted.ensureDeferred
async def test_what_a_response_continues_counts_as_its_prompt(
    reactor: Any, stand_in: Any, gateway_to: Any, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    monkeypatch.setitem(USAGE, "input_tokens", 500)
    server = ResponseStore(stand_in())
    gateway = priced(gateway_to, server)
    key = await gateway.make_key(**{**LIMITS, "max_budget": 2000})
    made = (await gateway.ask("POST", RESPONSES, key, body=SMALL)).json["id"]
    body = {**SMALL, "previous_response_id": made, "stream": True, "background": background}
    client = await gateway.send(request_bytes("POST", RESPONSES, key, body=body))
    await client.until_received(b"response.output_text.delta")
    assert gateway.limiter.reserved > (504 + 20) * DOLLAR
    client.cut()
    if background:
        await eventually(reactor, lambda: len(gateway.service.wiring.background))
        [response_id] = gateway.service.wiring.background.ids
        server.finish(response_id, "cancelled", None)
        gateway.pass_time(2)
        await charged(reactor, gateway)
    await eventually(reactor, lambda: not gateway.service.site.running())
    rows = await rows_of(gateway)
    [cut] = [row for row in rows if row["outcome"] == "client_disconnected"]
    assert 504 < cut["prompt_tokens"] < 600
    assert cut["completion_tokens"] >= 5
