"""Many keys with one client library: they share a head and its decision, and each stays its own."""

from __future__ import annotations

import json
import re
from ipaddress import ip_network
from typing import Any

import pytest_twisted
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from tests.end_to_end.conftest import MakeGateway, MakeStandIn
from tests.end_to_end.end_to_end_harness import MASTER_KEY, Gateway, Wire, request_bytes
from tests.end_to_end.messages import OK
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.grants import Changes, KeyGrant
from twisted_vllm.http.header_cache import MOST_HEADS

#: more than there are heads in the cache
KEYS = 2 * MOST_HEADS
BODY = {"model": "m", "prompt": "Hello"}


def key(number: int) -> str:
    return f"sk-many-{number:032d}"


def completion(credential: str, headers: dict[str, str] | None = None) -> bytes:
    return request_bytes("POST", "/vllm/v1/completions", credential, headers=headers, body=BODY)


def add_keys(gateway: Gateway, **values: Any) -> None:
    tokens = {hash_key(key(number)): number for number in range(KEYS)}
    gateway.service.wiring.index.apply(
        Changes(
            keys={token: KeyGrant(token, token[:32], f"key {number}", **values) for token, number in tokens.items()}
        )
    )


async def statuses(client: Wire, requests: list[bytes]) -> list[int]:
    """Send requests one after the other; return the statuses of their answers."""
    found = []
    for raw in requests:
        begin = len(client.received)
        client.send(raw)
        await client.until(lambda begin=begin: _is_whole(client.received[begin:]))  # type: ignore[misc]  # of the loop
        found.append(int(client.received[begin:].split(b" ", 2)[1]))
    return found


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(body) >= int(lengths[0].split(b":")[1])


@pytest_twisted.ensureDeferred
async def test_more_keys_than_heads_share_one_head_and_each_is_charged_for_its_own(
    stand_in: MakeStandIn, gateway_to: MakeGateway
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    add_keys(gateway)
    client = await gateway.connect()
    asked = [completion(key(number % KEYS)) for number in range(2 * KEYS)]
    assert set(await statuses(client, asked)) == {200}
    site, wiring = gateway.service.site, gateway.service.wiring
    assert len(site.header_cache) == 1
    assert wiring.keys_in_use == KEYS
    # none of the credentials went on
    assert b"sk-many" not in server.received
    names = [line["key_name"] for line in gateway.request_lines() if line["status"] == 200]
    assert names == [f"key {number % KEYS}" for number in range(2 * KEYS)]
    assert "sk-many" not in gateway.log_text()


@pytest_twisted.ensureDeferred
async def test_a_key_that_is_blocked_stops_at_once_and_the_others_go_on(
    stand_in: MakeStandIn, gateway_to: MakeGateway
) -> None:
    gateway = gateway_to(stand_in(OK).port)
    keys = [await gateway.make_key(team_id=None) for _ in range(3)]
    client = await gateway.connect()
    for _ in range(2):
        assert await statuses(client, [completion(each) for each in keys]) == [200, 200, 200]
    assert (await gateway.ask("POST", "/key/block", body={"key": keys[1]})).status == 200
    assert await statuses(client, [completion(each) for each in keys]) == [200, 401, 200]
    assert (await gateway.ask("POST", "/key/unblock", body={"key": keys[1]})).status == 200
    assert await statuses(client, [completion(each) for each in keys]) == [200, 200, 200]
    changed = {"key": keys[2], "models": ["other"]}
    assert (await gateway.ask("POST", "/key/update", body=changed)).status == 200
    assert await statuses(client, [completion(each) for each in keys]) == [200, 200, 403]
    assert (await gateway.ask("POST", "/key/delete", body={"keys": [keys[0]]})).status == 200
    assert await statuses(client, [completion(each) for each in keys]) == [401, 200, 403]


@pytest_twisted.ensureDeferred
async def test_wrong_keys_with_the_head_of_others_leave_nothing_and_put_nobody_out(
    stand_in: MakeStandIn, gateway_to: MakeGateway
) -> None:
    gateway = gateway_to(stand_in(OK).port)
    add_keys(gateway)
    client = await gateway.connect()
    good = [completion(key(number)) for number in range(3)]
    assert await statuses(client, good + good) == [200] * 6
    wiring = gateway.service.wiring
    before = wiring.keys_in_use
    asked = [completion(f"guess-{number:032d}") for number in range(300)]
    assert set(await statuses(client, asked)) <= {401, 429}
    assert wiring.keys_in_use == before
    assert len(gateway.service.site.header_cache) == 1
    assert await statuses(client, good) == [200] * 3


@pytest_twisted.ensureDeferred
async def test_each_request_has_its_own_ids_and_the_server_gets_them(
    stand_in: MakeStandIn, gateway_to: MakeGateway
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    add_keys(gateway)
    client = await gateway.connect()
    for number in range(3):
        traced = {
            "traceparent": f"00-{number:032x}-{number + 1:016x}-01",
            "baggage": f"user={number}",
            "X-Request-Id": f"id-{number}-{key(number)}",
        }
        assert await statuses(client, [completion(key(number), traced)]) == [200]
    heads = server.received.split(b"POST ")[1:]
    assert [head.count(b"baggage: user=%d" % number) for number, head in enumerate(heads)] == [1, 1, 1]
    assert len(gateway.service.site.header_cache) == 1
    # a key in the id of its own request is struck out of the log
    assert "sk-many" not in gateway.log_text()


@pytest_twisted.ensureDeferred
async def test_the_name_of_a_model_shows_no_key_of_another_caller_either(
    stand_in: MakeStandIn, gateway_to: MakeGateway
) -> None:
    gateway = gateway_to(stand_in(OK).port)
    add_keys(gateway)
    client = await gateway.connect()
    first, second = "pass-0123456789abcdef", "word-0123456789abcdef"
    for each in (first, second):
        token = hash_key(each)
        gateway.service.wiring.index.apply(Changes(keys={token: KeyGrant(token, token[:32], "x")}))
    for caller, named in ((second, first), (first, first), (second, second), (first, second)):
        raw = request_bytes("POST", "/vllm/v1/completions", caller, body={"model": f"m-{named}"})
        assert await statuses(client, [raw]) == [200]
    models = [line["model"] for line in gateway.request_lines() if "completions" in json.dumps(line)]
    # only the caller's own is known to be a secret
    assert [first in models[1], second in models[2]] == [False, False]
    assert len(models) == 4


@pytest_twisted.ensureDeferred
async def test_administrators_share_the_head_too(stand_in: MakeStandIn, gateway_to: MakeGateway) -> None:
    gateway = gateway_to(stand_in(OK).port)
    add_keys(gateway)
    client = await gateway.connect()
    asked = [completion(each) for each in (MASTER_KEY, key(1), MASTER_KEY, key(1))]
    assert await statuses(client, asked) == [200] * 4
    assert len(gateway.service.site.header_cache) == 1
    assert [line["key_name"] for line in gateway.request_lines() if line["status"] == 200] == ["master", "key 1"] * 2


@pytest_twisted.ensureDeferred
async def test_the_same_head_of_another_address_is_judged_and_told_by_its_own(
    reactor: Any, stand_in: MakeStandIn, gateway_to: MakeGateway
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port, allowed_ips=(ip_network("127.0.0.1"), ip_network("127.0.0.2")))
    add_keys(gateway)
    found = []
    for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1"):
        client = Wire(reactor)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", gateway.port, bindAddress=(address, 0))
        await connectProtocol(endpoint, client)
        found += await statuses(client, [completion(key(1))] * 2)
        client.close()
    assert found == [200, 200, 200, 200, 403, 403, 200, 200]
    told = re.findall(rb"X-Forwarded-For: (\S+)\r\n", server.received)
    assert told == [b"127.0.0.1"] * 2 + [b"127.0.0.2"] * 2 + [b"127.0.0.1"] * 2
    assert len(gateway.service.site.header_cache) == 1
