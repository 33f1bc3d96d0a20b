"""``cache_isolation``: the prompts of each such key have a salt of their own, and nothing else of them changes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.messages import OK

#: with spaces, orders and escapes that a parser and writer would not keep
BODY = rb'{ "model" : "m",  "messages":[{"role":"user","content":"h\u0069 \/ 1.50"}], "temperature":1.50e0 }'
SALT = re.compile(rb'"cache_salt":\s*"([^"]+)",?')


async def forwarded(server: Any, gateway: Any, key: str, body: bytes) -> bytes:
    """Return the body that the server got."""
    before = len(server.received) if server.connections else 0
    headers = {"Content-Type": "application/json"}
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", key, headers=headers, body=body)
    assert answer.status == 200
    received: bytes = server.received[before:]
    return received.partition(b"\r\n\r\n")[2]


@pytest_twisted.ensureDeferred
async def test_each_key_has_a_salt_of_its_own_and_the_rest_of_the_body_stays(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    one, other = await gateway.make_key(cache_isolation=True), await gateway.make_key(cache_isolation=True)
    salts = []
    for key in (one, other, one):
        body = await forwarded(server, gateway, key, BODY)
        [salt] = SALT.findall(body)
        assert SALT.sub(b"", body, count=1) == BODY
        salts.append(salt)
    assert salts[0] == salts[2] != salts[1]
    assert min(map(len, salts)) >= 32
    # a key without isolation shares the cache, and its body is its own
    assert await forwarded(server, gateway, await gateway.make_key(), BODY) == BODY
    # nobody is told the salt
    info = await gateway.ask("GET", f"/key/info?key={one}")
    assert info.json["info"]["cache_isolation"] is True
    assert salts[0] not in info.body
    assert salts[0].decode() not in gateway.log_text()


@pytest_twisted.ensureDeferred
async def test_a_salt_of_the_client_s_own_stays_within_its_key_s(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    keys = [await gateway.make_key(cache_isolation=True) for _ in range(2)]
    found = {}
    for key in keys:
        for own in (None, "mine", "yours"):
            body = BODY if own is None else BODY.replace(b"{ ", b'{ "cache_salt":"%b", ' % own.encode(), 1)
            got = await forwarded(server, gateway, key, body)
            found[key, own] = json.loads(got)["cache_salt"]
            assert SALT.sub(b"", got, count=1).replace(b" ", b"") == BODY.replace(b" ", b"")
    assert len(set(found.values())) == len(found)
    assert not {"mine", "yours"} & set(found.values())


@pytest.mark.parametrize("body", [b'{"model":"m","cache_salt":"a","cache_salt":"b"}', b'{"model":"m","cache_salt":5}'])
@pytest_twisted.ensureDeferred
async def test_a_salt_that_two_readers_could_see_differently_is_refused(
    stand_in: Any, gateway_to: Any, body: bytes
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key(cache_isolation=True)
    headers = {"Content-Type": "application/json"}
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", key, headers=headers, body=body)
    assert answer.status == 400
    assert server.connections == []
