"""What a request generated before it was cut is charged: by its time, its events and its size, up to its limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import pytest_twisted

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import (
    EndlessProducer,
    Gateway,
    StandIn,
    Wire,
    capped,
    eventually,
    request_bytes,
    server_at,
)
from tests.end_to_end.ledger_harness import Columns, event, rows_in
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk, whole
from twisted_vllm.config.settings import Limits, PriceList, Timeouts
from twisted_vllm.money import PICODOLLARS
from twisted_vllm.usage.generation_rate import DEFAULT_RATE

CHAT = "/vllm/v1/chat/completions"
#: a token costs a dollar
PRICES = PriceList(input_cost_per_token=Decimal(1), output_cost_per_token=Decimal(1))
#: what the server says of every request that finishes, and the seconds that it takes
TOKENS, SECONDS = 201, 4.0
USED = b'"usage":{"prompt_tokens":3,"completion_tokens":%d,"total_tokens":%d}' % (TOKENS, TOKENS + 3)
WHOLE = whole(b'{"choices":[],%b}' % USED, more="Connection: close\r\n")
ROLE, WORD = event(role="assistant"), event(content="ten tokens may be in here")
#: an event with the usage so far, as `continuous_usage_stats` requests it
COUNTED = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n'
)


class Lab:
    """A server that the test scripts, and a gateway in front of it whose clock the test advances."""

    def __init__(self, reactor: Any, server: StandIn, gateway: Gateway) -> None:
        self.gateway = gateway
        self._reactor = reactor
        self._server = server
        self._sent = 0

    async def send(self, name: str, key: str | None = None, path: str = CHAT, **fields: object) -> tuple[Wire, Wire]:
        """Send a request; return its client's connection and the server's, once the request has arrived there."""
        body = {"model": "m", "messages": [{"role": "user", "content": name}], **fields}
        options = {} if key is None else {"key": key}
        client = await self.gateway.send(
            request_bytes("POST", path, headers={"X-Request-Id": name}, body=body, **options)
        )
        await eventually(self._reactor, lambda: self._find(name))
        upstream = self._find(name)
        assert upstream is not None
        return client, upstream

    def _find(self, name: str) -> Wire | None:
        wanted = f'"{name}"'.encode()
        return next((wire for wire in self._server.connections if wanted in wire.received), None)

    async def finish(self, name: str, events: int = 0) -> None:
        """Serve a request to its end in `SECONDS`: in one piece, or as a stream with so many events."""
        client, upstream = await self.send(name, stream=bool(events))
        self.gateway.clock.advance(SECONDS)
        if events:
            usage = b"data: {%b}\n\n" % (b'"choices":[],' + USED)
            upstream.send(EVENT_STREAM + chunk(ROLE + WORD * events) + chunk(usage + b"data: [DONE]\n\n") + LAST)
            await client.until_received(LAST)
        else:
            upstream.send(WHOLE)
            await client.until_received(USED)
        client.close()

    async def cut(self, client: Wire) -> None:
        """Disconnect, and wait until the gateway knows."""
        running = self.gateway.service.site.running
        client.cut()
        await eventually(self._reactor, lambda: not running())

    async def rows(self) -> dict[str, Columns]:
        """Stop the gateway; return the ledger's rows."""
        await self.gateway.stop()
        return {name: row for name, [row] in rows_in(self.gateway.database_file).items()}


@pytest.fixture
def lab(reactor: Any, stand_in: Callable[..., StandIn], gateway_to: Callable[..., Gateway]) -> Callable[..., Lab]:
    """Makes a lab; the arguments are settings of the gateway."""

    def make(server: Callable[[int], Any] = server_at, **settings: Any) -> Lab:
        standing = stand_in()
        return Lab(reactor, standing, gateway_to(server(standing.port), default_prices=PRICES, **settings))

    return make


def check(row: Columns, tokens: int | range, outcome: str = "client_disconnected", prompt: int | None = None) -> None:
    """Check what a row charges."""
    found = row["completion_tokens"]
    assert found in (tokens if isinstance(tokens, range) else (tokens,)), row
    assert row["outcome"] == outcome
    assert row["estimated"] == 1
    assert row["prompt_tokens"] > 0 if prompt is None else row["prompt_tokens"] == prompt
    assert row["total_tokens"] == row["prompt_tokens"] + found
    assert row["cost"] == row["total_tokens"] * PICODOLLARS


@pytest_twisted.ensureDeferred
async def test_an_answer_that_was_not_streamed_is_charged_by_its_time(lab: Callable[..., Lab]) -> None:
    here = lab()
    await here.finish("whole")
    for name, choices in (("one", 1), ("three", 3)):
        client, _ = await here.send(name, n=choices, max_tokens=600)
        here.gateway.clock.advance(2.0)
        await here.cut(client)
    client, _ = await here.send("long", n=3, max_tokens=600)
    here.gateway.clock.advance(100.0)
    await here.cut(client)
    client, _ = await here.send("unlimited")
    here.gateway.clock.advance(100.0)
    await here.cut(client)
    rows = await here.rows()
    assert (rows["whole"]["completion_tokens"], rows["whole"]["estimated"]) == (TOKENS, 0)
    half = round(TOKENS / SECONDS * 2)
    check(rows["one"], half)
    check(rows["three"], range(3 * half - 3, 3 * half + 4))
    # never more than what the client allowed
    check(rows["long"], 1800)
    check(rows["unlimited"], Limits().assumed_output_tokens)
    assert rows["one"]["status"] == 0


@pytest_twisted.ensureDeferred
async def test_before_anything_was_learned_the_default_rate_is_charged(lab: Callable[..., Lab]) -> None:
    here = lab()
    client, _ = await here.send("first", max_tokens=600)
    here.gateway.clock.advance(0.5)
    await here.cut(client)
    check((await here.rows())["first"], round(DEFAULT_RATE / 2))


@pytest_twisted.ensureDeferred
async def test_a_key_without_limits_and_one_with_limits_are_charged_alike(lab: Callable[..., Lab]) -> None:
    here = lab()
    await here.finish("whole")
    key = await here.gateway.make_key(tpm_limit=10_000, max_budget=10_000)
    client, _ = await here.send("limited", key, n=3, max_tokens=600)
    here.gateway.clock.advance(2.0)
    await here.cut(client)
    # the limit has what was charged, not what was reserved
    client, upstream = await here.send("next", key, max_tokens=1)
    upstream.send(WHOLE)
    await client.until_received(USED)
    left = int(client.received.lower().partition(b"x-ratelimit-remaining-tokens: ")[2].partition(b"\r\n")[0])
    rows = await here.rows()
    check(rows["limited"], range(298, 306))
    next_reserved = left + rows["limited"]["total_tokens"]
    assert 9_900 < next_reserved < 10_000


@pytest_twisted.ensureDeferred
async def test_a_json_answer_that_was_arriving_is_charged_until_it_began_and_by_its_size(
    lab: Callable[..., Lab],
) -> None:
    here = lab()
    await here.finish("whole")
    text = json.dumps({"choices": [{"message": {"content": "x" * 40_000}}]}).encode()
    for name, limit in (("slow_client", 100_000), ("large", 500)):
        client, upstream = await here.send(name, max_tokens=limit)
        here.gateway.clock.advance(SECONDS)
        upstream.send(whole(text)[:2_000] if name == "slow_client" else whole(text)[:20_000])
        await client.until_received(b"xxx")
        here.gateway.clock.advance(300.0)
        await here.cut(client)
    client, upstream = await here.send("short", max_tokens=100_000)
    here.gateway.clock.advance(SECONDS)
    upstream.send(whole(b'{"choices":[],"text":"12345"}')[:-9])
    await client.until_received(b'{"choices"')
    here.gateway.clock.advance(300.0)
    await here.cut(client)
    rows = await here.rows()
    check(rows["slow_client"], range(4_000, 10_000))
    check(rows["large"], 500)
    # nothing was generated after it had begun
    check(rows["short"], TOKENS)


@pytest_twisted.ensureDeferred
async def test_a_stream_that_was_cut_is_charged_by_its_events(lab: Callable[..., Lab]) -> None:
    here = lab()
    await here.finish("whole", events=TOKENS)
    client, upstream = await here.send("cut", max_tokens=600, stream=True)
    upstream.send(EVENT_STREAM + chunk(ROLE + WORD * 90))
    await client.until_received(WORD * 90)
    here.gateway.clock.advance(2.0)
    await here.cut(client)
    rows = await here.rows()
    assert rows["whole"]["completion_tokens"] == TOKENS
    check(rows["cut"], 90)


@pytest_twisted.ensureDeferred
async def test_a_stream_with_ten_tokens_an_event_is_charged_for_them_after_one_such_stream(
    lab: Callable[..., Lab],
) -> None:
    here = lab()
    await here.finish("whole", events=1 + (TOKENS - 1) // 10)
    for name, limit in (("cut", 600), ("limited", 60)):
        client, upstream = await here.send(name, max_tokens=limit, stream=True)
        upstream.send(EVENT_STREAM + chunk(ROLE + WORD * 10))
        await client.until_received(WORD * 10)
        here.gateway.clock.advance(2.0)
        await here.cut(client)
    rows = await here.rows()
    check(rows["cut"], range(91, 102))
    check(rows["limited"], 60)


@pytest_twisted.ensureDeferred
async def test_before_a_stream_has_finished_long_events_are_charged_by_their_text(lab: Callable[..., Lab]) -> None:
    here = lab()
    for name, words in (("long", 10), ("short", 1)):
        client, upstream = await here.send(name, max_tokens=600, stream=True)
        events = ROLE + event(content="word") + event(content=" for" * words) * 9
        upstream.send(EVENT_STREAM + chunk(events))
        await client.until_received(b" for" * words)
        here.gateway.clock.advance(2.0)
        await here.cut(client)
    rows = await here.rows()
    check(rows["long"], range(88, 101))
    check(rows["short"], 10)


@pytest_twisted.ensureDeferred
async def test_rare_events_that_the_client_asked_for_do_not_make_a_stream_cheap(lab: Callable[..., Lab]) -> None:
    here = lab()
    await here.finish("whole", events=TOKENS)
    client, upstream = await here.send("cut", max_tokens=600, stream=True, stream_interval=1000)
    upstream.send(EVENT_STREAM + chunk(ROLE + WORD))
    await client.until_received(WORD)
    here.gateway.clock.advance(2.0)
    await here.cut(client)
    check((await here.rows())["cut"], range(99, 103))


@pytest.mark.parametrize("word", [WORD, COUNTED])
@pytest_twisted.ensureDeferred
async def test_a_stream_that_its_client_reads_slowly_is_charged_by_its_time(
    lab: Callable[..., Lab], reactor: Any, word: bytes
) -> None:
    here = lab()
    await here.finish("whole", events=TOKENS)
    client, upstream = await here.send("slow", max_tokens=6_000, stream=True)
    client.transport.pauseProducing()
    upstream.send(EVENT_STREAM + chunk(ROLE + word) + b"%x\r\n" % 200_000_000)
    producer = EndlessProducer(upstream)
    upstream.transport.registerProducer(producer, True)
    producer.resumeProducing()
    [running] = here.gateway.service.site.running()
    await eventually(reactor, lambda: running.context.meter is not None and running.context.meter.paused)
    here.gateway.clock.advance(20.0)
    await here.cut(client)
    check((await here.rows())["slow"], round(TOKENS / SECONDS * 20))


@pytest_twisted.ensureDeferred
async def test_the_usage_so_far_of_one_prompt_is_not_that_of_all(lab: Callable[..., Lab]) -> None:
    here = lab()
    await here.finish("whole", events=TOKENS)
    prompts = ["word " * 100] * 40
    options = {"include_usage": True, "continuous_usage_stats": True}
    client, upstream = await here.send(
        "cut", path="/vllm/v1/completions", prompt=prompts, max_tokens=20, stream=True, stream_options=options
    )
    upstream.send(EVENT_STREAM + chunk(COUNTED))
    await client.until_received(COUNTED)
    await here.cut(client)
    row = (await here.rows())["cut"]
    check(row, 1)
    assert row["prompt_tokens"] > len("".join(prompts)) // 4


@pytest_twisted.ensureDeferred
async def test_what_the_server_cuts_or_does_not_answer_in_time_is_charged(lab: Callable[..., Lab]) -> None:
    here = lab(lambda port: server_at(port, timeouts=Timeouts(response_head=30.0)))
    await here.finish("whole")
    client, upstream = await here.send("cut", max_tokens=6_000)
    here.gateway.clock.advance(2.0)
    upstream.cut()
    await client.until_received(b"upstream_unreachable")
    client, _ = await here.send("late", max_tokens=6_000)
    here.gateway.pass_time(30.0)
    await client.until_received(b"upstream_timeout")
    # it did not even begin
    client, upstream = await here.send("at_once", max_tokens=6_000)
    upstream.cut()
    await client.until_received(b"upstream_unreachable")
    rows = await here.rows()
    half = round(TOKENS / SECONDS * 2)
    check(rows["cut"], half, "upstream_failed")
    check(rows["late"], range(15 * half, 16 * half), "upstream_failed")
    assert (rows["at_once"]["total_tokens"], rows["at_once"]["cost"]) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_a_revoked_and_a_drained_request_are_charged(lab: Callable[..., Lab]) -> None:
    here = lab(revoke_running=True)
    await here.finish("whole")
    key = await here.gateway.make_key()
    client, _ = await here.send("revoked", key, max_tokens=6_000)
    here.gateway.clock.advance(2.0)
    answer = await here.gateway.ask("POST", "/key/block", body={"key": key})
    assert answer.status == 200
    here.gateway.clock.pump([0.2] * 3)
    await client.until_received(b"blocked_api_key")
    client, _ = await here.send("drained", max_tokens=6_000)
    here.gateway.clock.advance(2.0)
    stopped = here.gateway.stop()
    here.gateway.service.wiring.drain.abort()
    here.gateway.clock.advance(0.1)
    await stopped
    rows = {name: row for name, [row] in rows_in(here.gateway.database_file).items()}
    half = round(TOKENS / SECONDS * 2)
    check(rows["revoked"], range(half, half + 40), "revoked")
    check(rows["drained"], range(half, half + 40), "failed")


@pytest_twisted.ensureDeferred
async def test_the_wait_for_a_busy_server_costs_nothing(lab: Callable[..., Lab], reactor: Any) -> None:
    here = lab(lambda port: capped(port, queue=None))
    await here.finish("whole")
    first, upstream = await here.send("first", max_tokens=600)
    second = await here.gateway.send(
        request_bytes(
            "POST", CHAT, headers={"X-Request-Id": "second"}, body={"model": "m", "messages": [], "max_tokens": 600}
        )
    )
    await eventually(reactor, lambda: here.gateway.queued)
    here.gateway.clock.advance(50.0)
    upstream.send(WHOLE)
    await first.until_received(USED)
    await eventually(reactor, lambda: not here.gateway.queued)
    here.gateway.clock.advance(2.0)
    await here.cut(second)
    check((await here.rows())["second"], round(TOKENS / SECONDS * 2))


@pytest_twisted.ensureDeferred
async def test_what_no_server_began_costs_nothing(gateway_to: Callable[..., Gateway]) -> None:
    gateway = gateway_to(server_at(free_port()), default_prices=PRICES)
    answer = await gateway.ask("POST", CHAT, body={"model": "m", "messages": [], "max_tokens": 600})
    assert answer.error["code"] == "upstream_unreachable"
    await gateway.stop()
    [[row]] = rows_in(gateway.database_file).values()
    assert (row["total_tokens"], row["cost"], row["estimated"]) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_a_route_that_does_not_generate_is_charged_for_its_prompt_alone(lab: Callable[..., Lab]) -> None:
    here = lab()
    await here.finish("whole")
    client, _ = await here.send("embedding", path="/vllm/v1/embeddings")
    here.gateway.clock.advance(20.0)
    await here.cut(client)
    check((await here.rows())["embedding"], 0)
