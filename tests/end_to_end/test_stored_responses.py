"""Stored responses belong to the key that made them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import MASTER_KEY, Answer, server_at
from tests.end_to_end.response_store import ResponseStore
from twisted_vllm.config.settings import ModelEntry

RESPONSES = "/vllm/v1/responses"
JSON = {"Content-Type": "application/json"}
NEVER = "resp_" + "0" * 32
#: what two answers may differ in
#: as random as the request's id
CALL_ID = b"x-litellm-call-id"
ID = re.compile(rb"resp_[0-9a-f]+")


async def create(gateway: Any, key: str, **fields: Any) -> str:
    answer = await gateway.ask("POST", RESPONSES, key, body={"model": "m", "input": "hi", **fields})
    assert answer.status == 200, answer.body
    return str(answer.json["id"])


def is_unknown(answer: Answer, like: Answer) -> bool:
    """Tell whether the answer says what that for an id which never existed says."""

    def told(each: Answer) -> tuple[object, ...]:
        headers = [pair for pair in each.headers if pair[0].lower() not in (b"date", b"x-request-id", CALL_ID)]
        return each.status, headers, ID.sub(b"", each.body)

    return answer.status == 404 and told(answer) == told(like)


@pytest_twisted.ensureDeferred
async def test_a_response_is_its_key_s_alone(stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    mine, other = (
        await gateway.make_key(user_id="ada", team_id="lab"),
        await gateway.make_key(user_id="ada", team_id="lab"),
    )
    made = await create(gateway, mine)
    assert re.fullmatch("resp_[0-9a-f]{32}", made)
    assert (await gateway.ask("GET", f"{RESPONSES}/{made}", mine)).json["id"] == made
    assert (await gateway.ask("GET", f"{RESPONSES}/{made}", MASTER_KEY)).json["id"] == made
    came = len(server.requests)
    for method, suffix in (("GET", ""), ("HEAD", ""), ("POST", "/cancel"), ("GET", "?stream=true")):
        never = await gateway.ask(method, f"{RESPONSES}/{NEVER}{suffix}", other)
        assert is_unknown(await gateway.ask(method, f"{RESPONSES}/{made}{suffix}", other), like=never)
        assert is_unknown(await gateway.ask(method, f"/vllm/responses/{made}{suffix}", other), like=never)
    assert len(server.requests) == came
    assert (await gateway.ask("POST", f"{RESPONSES}/{made}/cancel", mine)).json["status"] == "cancelled"


@pytest.mark.parametrize(
    "path",
    ["/v1%2Fresponses/{}", "/v1/responses%2F{}", "/v1/%72esponses/{}", "/v1/responses/{}/", "/x/v1/responses/{}"],
)
@pytest_twisted.ensureDeferred
async def test_no_spelling_reaches_another_s_response(stand_in: Any, gateway_to: Any, path: str) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    made = await create(gateway, await gateway.make_key())
    other = await gateway.make_key(allowed_routes=["inference", "privileged"])
    came = len(server.requests)
    for method in ("GET", "DELETE", "PUT", "POST"):
        for suffix in ("", "/cancel", "/input_items"):
            answer = await gateway.ask(method, f"/vllm{path.format(made)}{suffix}", other)
            assert (answer.status, answer.error["code"]) == (404, "response_not_found")
    assert len(server.requests) == came


@pytest.mark.parametrize("path", ["/v1%2Fresponses", "/v1/response%73", "/x/v1/responses", "/%761/responses"])
@pytest_twisted.ensureDeferred
async def test_no_spelling_continues_another_s_response(stand_in: Any, gateway_to: Any, path: str) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    made = await create(gateway, await gateway.make_key())
    other = await gateway.make_key(allowed_routes=["inference", "privileged"])
    body = {"model": "m", "input": "hi", "previous_response_id": made}
    answer = await gateway.ask("POST", f"/vllm{path}", other, body=body)
    assert answer.status in (403, 404)
    assert answer.error
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m","input":"hi","previous_response_id":"ID"}',
        '{"model":"m","input":"hi","previous\\u005fresponse_id":"ID"}',
        '{"model":"m","input":"hi","previous_response_id":"r\\u0065spID"}',
        '{"previous_response_id":"OWN","model":"m","input":"hi","previous_response_id":"ID"}',
        '{"previous_response_id":"OWN","model":"m","input":"hi","\\u0070revious_response_id":"ID"}',
    ],
)
@pytest_twisted.ensureDeferred
async def test_another_s_response_cannot_be_continued(stand_in: Any, gateway_to: Any, body: str) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    mine, other = await gateway.make_key(), await gateway.make_key()
    made, own = await create(gateway, mine), await create(gateway, other)
    came = len(server.requests)

    async def continue_from(response_id: str) -> Answer:
        text = body.replace("r\\u0065spID", "r\\u0065sp" + response_id[4:]).replace("OWN", own)
        answer: Answer = await gateway.ask(
            "POST", RESPONSES, other, headers=JSON, body=text.replace("ID", response_id).encode()
        )
        return answer

    assert is_unknown(await continue_from(made), like=await continue_from(NEVER))
    assert len(server.requests) == came
    assert (await continue_from(own)).status == 200


@pytest_twisted.ensureDeferred
async def test_of_repeated_ids_the_last_counts_as_in_vllm(stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    mine, other = await gateway.make_key(), await gateway.make_key()
    made, own = await create(gateway, mine), await create(gateway, other)
    raw = f'{{"model":"m","input":"hi","previous_response_id":"{made}","previous_response_id":"{own}"}}'
    answer = await gateway.ask("POST", RESPONSES, other, headers=JSON, body=raw.encode())
    assert answer.status == 200
    assert server.bodies[-1]["previous_response_id"] == own


@pytest.mark.parametrize("member", ['"request_id"', '"request\\u005fid"'])
@pytest_twisted.ensureDeferred
async def test_a_key_cannot_choose_the_id(stand_in: Any, gateway_to: Any, member: str) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    mine, other = await gateway.make_key(), await gateway.make_key()
    made = await create(gateway, mine)
    raw = f'{{"model":"m",{member}: "{made}" ,"input":"h\u00e9"}}'
    answer = await gateway.ask("POST", RESPONSES, other, headers=JSON, body=raw.encode())
    assert answer.status == 200
    assert answer.json["id"] not in (made, "")
    assert server.bodies[-1] == {"model": "m", "request_id": answer.json["id"], "input": "h\u00e9"}
    twice = f'{{"model":"m","request_id":"a",{member}:"{made}","input":"hi"}}'
    answer = await gateway.ask("POST", RESPONSES, other, headers=JSON, body=twice.encode())
    assert (answer.status, answer.error["param"]) == (400, "request_id")
    assert len(server.responses) == 2


@pytest_twisted.ensureDeferred
async def test_an_administrator_s_body_stays_as_it_is(stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    assert await create(gateway, MASTER_KEY, request_id="resp_mine") == "resp_mine"
    await create(gateway, MASTER_KEY)
    assert "request_id" not in server.bodies[-1]
    made = await create(gateway, await gateway.make_key())
    await create(gateway, MASTER_KEY, previous_response_id=made)
    key = await gateway.make_key()
    assert (await gateway.ask("GET", f"{RESPONSES}/resp_mine", key)).status == 404


@pytest_twisted.ensureDeferred
async def test_a_regenerated_key_keeps_its_responses(stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    key = await gateway.make_key()
    made = await create(gateway, key)
    new = (await gateway.ask("POST", "/key/regenerate", body={"key": key})).json["key"]
    assert new != key
    assert (await gateway.ask("GET", f"{RESPONSES}/{made}", new)).status == 200


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, b'\xef\xbb\xbf{"model":"m","previous_response_id":"x"}'),
        (JSON, '{"model":"m","previous_response_id":"x"}'.encode("utf-16")),
        (JSON, b'{"model":"m","model":"n","previous_response_id":"x"}'),
        (JSON, b'{"model":"m","previous_response_id":"x","seed":' + b"1" * 5000 + b"}"),
        ({"Content-Type": "text/plain"}, b'{"model":"m","previous_response_id":"x"}'),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n',
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_key_s_body_that_cannot_be_read_is_refused(
    stand_in: Any, gateway_to: Any, headers: dict[str, str], body: bytes
) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    answer = await gateway.ask("POST", RESPONSES, await gateway.make_key(), headers=headers, body=body)
    assert answer.status == 400
    assert server.requests == []


@pytest_twisted.ensureDeferred
async def test_a_response_is_found_on_the_server_that_has_it(stand_in: Any, gateway_to: Any) -> None:
    servers = [ResponseStore(stand_in()) for _ in range(3)]
    entries = tuple(ModelEntry("m", "m", server_at(each.port)) for each in servers[1:])
    gateway = gateway_to(servers[0].port, models=entries)
    key, other = await gateway.make_key(), await gateway.make_key()
    made = [await create(gateway, key) for _ in range(4)]
    assert [len(each.responses) for each in servers] == [0, 2, 2]
    for response_id in made:
        assert (await gateway.ask("GET", f"{RESPONSES}/{response_id}", key)).json["id"] == response_id
        assert (await gateway.ask("GET", f"{RESPONSES}/{response_id}", MASTER_KEY)).json["id"] == response_id
        assert (await gateway.ask("GET", f"{RESPONSES}/{response_id}", other)).status == 404
        await create(gateway, key, previous_response_id=response_id)
        await create(gateway, MASTER_KEY, previous_response_id=response_id)
    assert servers[0].requests == []


@pytest_twisted.ensureDeferred
async def test_a_response_that_its_server_lost_is_vllm_s_404(stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    key = await gateway.make_key()
    made = await create(gateway, key)
    server.responses.clear()
    answer = await gateway.ask("GET", f"{RESPONSES}/{made}", key)
    own = await gateway.ask("GET", f"{RESPONSES}/{NEVER}", key)
    assert answer.status == own.status == 404
    assert json.loads(answer.body)["error"]["message"].replace(made, "") == own.error["message"].replace(NEVER, "")
    assert own.error["param"] == "response_id"
