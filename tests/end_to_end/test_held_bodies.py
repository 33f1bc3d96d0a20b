"""Bodies of whoever it may be: nobody's is held before it is known who asks, and what is held has a bound."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end import twistd_harness
from tests.end_to_end.end_to_end_harness import MASTER_KEY, eventually, request_bytes
from tests.end_to_end.messages import OK, length_of
from tests.end_to_end.process_harness import (
    FULL,
    MEBIBYTE,
    Connection,
    MeasuredGateway,
    connect,
    connected,
    many_descriptors,
    request_head,
    served,
    settled,
)
from tests.end_to_end.twistd_harness import ask, wait_until
from twisted_vllm.config.settings import Limits

CHAT = "/vllm/v1/chat/completions"
MIB = str(MEBIBYTE)
#: a body of a model that is not read to its end, for its size alone
LARGE_SIZE = 60_000_000 if FULL else 6_000_000
#: requests of two keys at once
FLOOD = 64 if FULL else 16
#: strangers at once
STRANGERS = 500


# by the head


@pytest.mark.parametrize(
    ("method", "target", "key", "status", "code"),
    [
        ("POST", "/nothing-here", None, 404, "not_found"),
        ("POST", "/nothing-here", MASTER_KEY, 404, "not_found"),
        ("POST", "/key/list", MASTER_KEY, 405, "method_not_allowed"),
        ("POST", "/health/liveliness", None, 405, "method_not_allowed"),
        ("POST", "/key/generate", None, 401, "missing_api_key"),
        ("POST", "/key/generate", "sk-unknown-0123456789", 401, "invalid_api_key"),
        ("POST", CHAT, None, 401, "missing_api_key"),
        ("POST", "/vllm/v1/load_lora_adapter", "sk-unknown-0123456789", 401, "invalid_api_key"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_who_may_not_ask_is_answered_before_the_body_comes(
    stand_in: Any, gateway_to: Any, method: str, target: str, key: str | None, status: int, code: str
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    raw = request_bytes(method, target, key, headers={"Content-Length": MIB, "Content-Type": "application/json"})
    answer = await gateway.answer_to(raw)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.header("connection") == "close"
    assert gateway.service.site.held_bodies.held == 0
    assert server.connections == []


@pytest.mark.parametrize("target", ["/health/liveliness", "/metrics", "/"])
@pytest_twisted.ensureDeferred
async def test_a_public_path_takes_no_body(stand_in: Any, gateway_to: Any, target: str) -> None:
    gateway = gateway_to(stand_in().port)
    answer = await gateway.answer_to(request_bytes("GET", target, None, headers={"Content-Length": MIB}))
    assert answer.status == 200
    assert answer.header("connection") == "close"


@pytest_twisted.ensureDeferred
async def test_a_small_body_of_a_stranger_does_not_cost_the_connection(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port)
    client = await gateway.send(request_bytes("POST", "/nothing-here", None, headers={"Content-Length": "9"}))
    await client.until_received(b"not_found")
    client.send(b"{" + b" " * 7 + b"}" + request_bytes("GET", "/health/liveliness", None))
    await client.until_received(b"alive")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"rpm_limit": 0}, 429, "rate_limit_exceeded"),
        ({"tpm_limit": 0}, 429, "rate_limit_exceeded"),
        ({"max_parallel_requests": 0}, 429, "rate_limit_exceeded"),
        ({"max_budget": 0}, 429, "budget_exceeded"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_key_with_a_limit_of_nothing_is_refused_before_its_body_comes(
    stand_in: Any, gateway_to: Any, fields: dict[str, int], status: int, code: str
) -> None:
    gateway = gateway_to(stand_in().port)
    key = await gateway.make_key(**fields)
    for content_type in ("application/json", "multipart/form-data; boundary=b"):
        headers = {"Content-Length": "60000000", "Content-Type": content_type}
        answer = await gateway.answer_to(request_bytes("POST", CHAT, key, headers=headers))
        assert (answer.status, answer.error["code"]) == (status, code)
    assert gateway.service.site.held_bodies.held == 0


@pytest_twisted.ensureDeferred
async def test_a_key_without_requests_left_is_refused_before_its_body_is_read(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port)
    key = await gateway.make_key(rpm_limit=1)
    assert (await gateway.ask("POST", CHAT, key, body={"model": "m", "messages": []})).status == 200
    raw = request_bytes("POST", CHAT, key, headers={"Content-Length": "60000000", "Content-Type": "application/json"})
    assert (await gateway.answer_to(raw)).status == 429
    # one that came whole with its head, and is not JSON
    raw = request_bytes("POST", CHAT, key, headers={"Content-Type": "application/json"}, body=b"{" * 20_000)
    assert (await gateway.answer_to(raw)).status == 429


@pytest_twisted.ensureDeferred
async def test_a_blocked_end_user_in_a_header_is_refused_before_the_body_comes(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port)
    assert (await gateway.ask("POST", "/customer/new", body={"user_id": "eve"})).status == 200
    assert (await gateway.ask("POST", "/customer/block", body={"user_ids": ["eve"]})).status == 200
    headers = {"Content-Length": MIB, "Content-Type": "application/json", "x-litellm-end-user-id": "eve"}
    answer = await gateway.answer_to(request_bytes("POST", CHAT, headers=headers))
    assert (answer.status, answer.error["code"]) == (403, "end_user_blocked")


@pytest.mark.parametrize("target", [CHAT, "/key/generate"])
@pytest_twisted.ensureDeferred
async def test_413_names_its_setting_and_the_size(stand_in: Any, gateway_to: Any, target: str) -> None:
    gateway = gateway_to(stand_in().port)
    key = MASTER_KEY if target != CHAT else await gateway.make_key(models=["m"])
    setting = "max_held_body_bytes" if target == CHAT else "max_admin_body_bytes"
    headers = {"Content-Length": "73400320", "Content-Type": "application/json"}
    answer = await gateway.answer_to(request_bytes("POST", target, key, headers=headers))
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert f"passthrough.limits.{setting}" in answer.error["message"]
    assert "70 MiB (73400320 bytes)" in answer.error["message"]
    assert ("64 MiB" if target == CHAT else "1 MiB") in answer.error["message"]


@pytest_twisted.ensureDeferred
async def test_413_of_a_chunked_admin_body_names_its_setting(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port, limits=Limits(max_admin_body_bytes=1_000))
    raw = request_bytes("POST", "/key/generate", headers={"Transfer-Encoding": "chunked"})
    answer = await gateway.answer_to(raw + b"3e9\r\n" + bytes(1_001) + b"\r\n")
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert "passthrough.limits.max_admin_body_bytes" in answer.error["message"]
    assert gateway.service.site.held_bodies.held == 0


@pytest_twisted.ensureDeferred
async def test_an_admin_body_in_pieces_is_read(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    gateway = gateway_to(stand_in().port)
    body = json.dumps({"key_alias": "slow", "metadata": {"padding": "x" * 100_000}}).encode()
    raw = request_bytes("POST", "/key/generate", body=body)
    client = await gateway.send(raw[:-90_000])
    await eventually(reactor, lambda: gateway.service.site.held_bodies.held == len(body))
    client.send(raw[-90_000:])
    await client.until_received(b'"key_alias":"slow"')
    assert gateway.service.site.held_bodies.held == 0


# in all


class Upstream:
    """A server that reads whole requests, and answers them when it may.

    Attributes:
        answers: whether it answers; otherwise it waits until that is set.
        whole: how many whole requests came.
    """

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.whole = 0

    def serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            for _ in connection.pieces(length_of(head)):
                pass
            self.whole += 1
            self.answers.wait()
            connection.send(OK)


def figure(gateway: MeasuredGateway, name: str) -> float:
    """Return a metric of the gateway."""
    found = re.search(rf"^vllm_passthrough_{name} (\S+)$", ask(gateway.port, "/metrics")[1], re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def make_key(gateway: MeasuredGateway, **fields: object) -> str:
    status, body = ask(gateway.port, "/key/generate", twistd_harness.MASTER_KEY, "POST", json.dumps(fields))
    assert status == 200, body
    return str(json.loads(body)["key"])


def chat_head(key: str, size: int) -> bytes:
    lines = [f"Content-Length: {size}", "Content-Type: application/json"]
    return request_head("POST", CHAT, *lines).replace(twistd_harness.MASTER_KEY.encode(), key.encode())


def chat_body(size: int) -> bytes:
    start, end = b'{"model":"m","messages":[{"role":"user","content":"', b'"}]}'
    return start + b"x" * (size - len(start) - len(end)) + end


class Flood:
    """Requests with large bodies, each on a connection and in a thread of its own.

    Attributes:
        statuses: the answers that came.
    """

    def __init__(self, gateway: MeasuredGateway, key: str, count: int, size: int) -> None:
        self.statuses: list[int] = []
        self._gateway = gateway
        self._data = chat_head(key, size) + chat_body(size)
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with connected(self._gateway.port) as client:
            client.socket.settimeout(300)
            with suppress(OSError):
                # if it is refused, the answer is there
                client.send(self._data)
            self.statuses.append(int(client.read_head().split(b" ")[1]))

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def make_gateway(tmp_path: Path, upstream: Upstream) -> Iterator[Callable[[str], MeasuredGateway]]:
    with ExitStack() as stack:
        server = stack.enter_context(served(upstream.serve))
        stack.callback(upstream.answers.set)

        def make(settings: str = "") -> MeasuredGateway:
            return stack.enter_context(MeasuredGateway(tmp_path, server.port, passthrough=settings))

        yield make


def test_500_strangers_with_a_mebibyte_each_hold_nothing(make_gateway: Callable[[str], MeasuredGateway]) -> None:
    gateway = make_gateway("")
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n"
    targets = [b"/nothing-here", b"/key/generate", CHAT.encode(), b"/vllm/tokenizer_info", b"/metrics"]
    with many_descriptors(4 * STRANGERS), ExitStack() as stack:
        ask(gateway.port, "/nothing-here", None, "POST", "x" * 100_000)
        before = gateway.forget_peak()
        for number in range(STRANGERS):
            client = stack.enter_context(connected(gateway.port))
            with suppress(OSError):
                # the gateway may close while it is sent
                client.send(head % targets[number % len(targets)] + bytes(1_048_575))
        grown = settled(lambda: gateway.peak - before, 10 * MEBIBYTE)
    print(f"{STRANGERS} strangers with a MiB each: peak +{grown / MEBIBYTE:.1f} MiB")
    assert grown < 20 * MEBIBYTE
    assert figure(gateway, "held_body_bytes") == 0


def test_many_large_bodies_of_two_keys_stay_within_the_total_and_nobody_else_waits(
    make_gateway: Callable[[str], MeasuredGateway], upstream: Upstream
) -> None:
    total = 3 * LARGE_SIZE
    gateway = make_gateway(
        f"timeouts: {{held_body: 300}}, limits: {{max_held_total_bytes: {total}, max_held_body_bytes: {LARGE_SIZE}}}"
    )
    first, second, other = (make_key(gateway, models=["m"]) for _ in range(3))
    upstream.answers.set()
    Flood(gateway, other, 1, LARGE_SIZE // 10).join()
    upstream.answers.clear()
    gateway.forget_peak()
    before = gateway.memory
    floods = [Flood(gateway, key, FLOOD // 2, LARGE_SIZE) for key in (first, second)]
    wait_until(lambda: upstream.whole == 3)
    wait_until(lambda: figure(gateway, "bodies_waiting") == FLOOD - 2)
    assert figure(gateway, "held_body_bytes") <= total
    began = time.monotonic()
    third = Flood(gateway, other, 1, LARGE_SIZE // 10)
    wait_until(lambda: upstream.whole == 4)
    waited = time.monotonic() - began
    upstream.answers.set()
    for flood in (*floods, third):
        flood.join()
    peak = gateway.peak - before
    print(
        f"{FLOOD} bodies of {LARGE_SIZE / 1e6:.0f} MB by two keys, {total / 1e6:.0f} MB in all: peak "
        f"+{peak / 1e6:.0f} MB, another key waited {waited * 1000:.0f} ms"
    )
    # each body is in memory up to three times while it goes on
    assert peak < 3.2 * total
    assert third.statuses == [200]
    assert waited < 2
    assert [status for flood in floods for status in flood.statuses] == [200] * FLOOD
    assert figure(gateway, "held_body_bytes") == 0
    assert figure(gateway, "bodies_waiting") == 0
    assert figure(gateway, "bodies_without_room_total") == 0


def test_bodies_that_wait_in_vain_get_503_and_the_room_comes_back(
    make_gateway: Callable[[str], MeasuredGateway], upstream: Upstream
) -> None:
    gateway = make_gateway(
        "timeouts: {held_body: 1}, limits: {max_held_total_bytes: 2000000, max_held_body_bytes: 1000000}"
    )
    key = make_key(gateway, models=["m"])
    flood = Flood(gateway, key, 10, 900_000)
    wait_until(lambda: len(flood.statuses) == 9)
    assert flood.statuses == [503] * 9
    upstream.answers.set()
    flood.join()
    assert flood.statuses[-1] == 200
    assert figure(gateway, "held_body_bytes") == 0
    assert figure(gateway, "bodies_without_room_total") == 9


def test_a_large_body_of_a_type_that_says_nothing_is_not_held(
    make_gateway: Callable[[str], MeasuredGateway], upstream: Upstream
) -> None:
    size = 100_000_000
    gateway = make_gateway("")
    upstream.answers.set()
    client = connect(gateway.port)
    before = gateway.forget_peak()
    client.send(request_head("POST", CHAT, f"Content-Length: {size}", "Content-Type: application/octet-stream"))
    for _ in range(size // 1_000_000):
        client.send(bytes(1_000_000))
    assert b"200 OK" in client.read_head()
    client.close()
    assert gateway.peak - before < 20 * MEBIBYTE
