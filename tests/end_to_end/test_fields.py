"""Fields of a body that reach over the fence: what a key may not send never reaches vLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.messages import OK
from twisted_vllm.config.settings import MediaUrls, TenantFields

CHAT = "/vllm/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


def body_of(server: Any) -> Any:
    return json.loads(server.received.rpartition(b"\r\n\r\n")[2])


@pytest_twisted.ensureDeferred
async def test_a_key_does_not_jump_the_queue(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key()
    for text in ('"priority":-1000', '"prior\\u0069ty":-1000', '"priority":0,"priority":-1000', '"priority":"-1000"'):
        body = b'{"model":"qwen","messages":[],%b}' % text.encode()
        answer = await gateway.ask("POST", CHAT, key, body=body, headers={"Content-Type": "application/json"})
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "field_not_allowed", "priority")
        assert "the gateway forbids it to virtual keys" in answer.error["message"]
    assert server.connections == []
    assert (
        await gateway.ask("POST", CHAT, key, body={"model": "qwen", "messages": MESSAGES, "priority": 0})
    ).status == 200


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", [CHAT, "/vllm/v1/embeddings", "/vllm/v2/embed", "/vllm/pooling"])
async def test_a_key_s_own_priority_is_what_the_server_gets(stand_in: Any, gateway_to: Any, path: str) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key(priority=5)
    answer = await gateway.ask("POST", path, key, body={"model": "qwen", "input": "a", "priority": -1000})
    assert answer.status == 200
    assert body_of(server) == {"model": "qwen", "input": "a", "priority": 5}
    assert b"X-Vllm-Priority: 5" in server.received


@pytest_twisted.ensureDeferred
async def test_a_priority_is_written_where_the_header_is_not_read(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key(priority=5)
    assert (await gateway.ask("POST", "/vllm/v1/embeddings", key, body={"model": "qwen", "input": "a"})).status == 200
    assert body_of(server) == {"model": "qwen", "input": "a", "priority": 5}


@pytest_twisted.ensureDeferred
async def test_the_master_key_sends_any_field_byte_for_byte(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    body = (
        b'{"model":"qwen","priority":-1000,"vllm_xargs":{"a":1},"messages":[{"content":[{"image_url":"file:///x"}]}]}'
    )
    answer = await gateway.ask("POST", CHAT, body=body, headers={"Content-Type": "application/json"})
    assert answer.status == 200
    assert server.received.endswith(body)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://169.254.169.254/latest/meta-data/", 400),
        ("http://0x7f.1:8000/metrics", 400),
        ("http://[::ffff:10.0.0.1]/", 400),
        ("file:///etc/passwd", 400),
        ("http://vllm-2:8000/metrics", 400),
        ("http://files.internal/a.png", 200),
        ("https://example.com/a.png", 200),
        ("https://denied.example.com/a.png", 400),
        ("data:image/png;base64,AA==", 200),
    ],
)
async def test_a_server_fetches_no_private_url_for_a_key(stand_in: Any, gateway_to: Any, url: str, status: int) -> None:
    media = MediaUrls(allowed_hosts=("*", "files.internal"), denied_hosts=("denied.*",))
    gateway = gateway_to(stand_in(OK).port, tenant_fields=TenantFields(media=media))
    key = await gateway.make_key()
    content = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "qwen", "messages": [{"role": "user", "content": content}]}
    answer = await gateway.ask("POST", CHAT, key, body=body)
    assert answer.status == status
    if status == 400:
        assert (answer.error["code"], answer.error["param"]) == ("field_not_allowed", "image_url")


@pytest_twisted.ensureDeferred
async def test_rules_of_keys_and_teams_act_on_the_next_request(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port)
    await gateway.ask("POST", "/team/new", body={"team_id": "x", "field_limits": {"n": 2}})
    key = await gateway.make_key(team_id="x", forbidden_fields=["background"], allowed_fields=["vllm_xargs"])

    async def ask(**fields: Any) -> Any:
        return await gateway.ask("POST", CHAT, key, body={"model": "qwen", "messages": MESSAGES, **fields})

    assert (await ask(n=2, vllm_xargs={"a": 1})).status == 200
    assert "the team of this key allows at most 2" in (await ask(n="3")).error["message"]
    assert "this key forbids it" in (await ask(background=True)).error["message"]
    await gateway.ask("POST", "/key/update", body={"key": key, "forbidden_fields": None, "allowed_fields": []})
    await gateway.ask("POST", "/team/update", body={"team_id": "x", "field_limits": None})
    assert (await ask(n=3, background=True)).status == 200
    assert "the gateway forbids it" in (await ask(vllm_xargs={"a": 1})).error["message"]


def form(*fields: tuple[str, bytes]) -> bytes:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), each)
        for name, each in fields
    ]
    return b"".join([*parts, b"--b--\r\n"])


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
AUDIO = "/vllm/v1/audio/transcriptions"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.parametrize("order", ["file vllm_xargs model", "model file vllm_xargs", "file model n"])
async def test_a_form_is_checked_wherever_the_field_stands(
    stand_in: Any, gateway_to: Any, size: int, order: str
) -> None:
    # it never answers: vLLM reads a form to its end before it does
    server = stand_in()
    gateway = gateway_to(server.port)
    key = await gateway.make_key()
    values = {"model": b"whisper", "file": b"x" * size, "vllm_xargs": b'{"session_id":"a"}', "n": b"500"}
    body = form(*((name, values[name]) for name in order.split()))
    answer = await gateway.ask("POST", AUDIO, key, body=body, headers=FORM)
    assert (answer.status, answer.error["code"]) == (400, "field_not_allowed")
    assert not any(each.received.endswith(b"--b--\r\n") for each in server.connections)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [100, 3_000_000])
async def test_an_ordinary_form_passes(stand_in: Any, gateway_to: Any, size: int) -> None:
    gateway = gateway_to(stand_in(OK).port)
    key = await gateway.make_key()
    body = form(("file", b"x" * size), ("model", b"whisper"), ("n", b"1"))
    assert (await gateway.ask("POST", AUDIO, key, body=body, headers=FORM)).status == 200


@pytest_twisted.ensureDeferred
async def test_a_body_that_cannot_be_read_does_not_slip_by(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key()
    for body, kind in (
        ('{"priority":-1}'.encode("utf-16"), "application/json"),
        (b'{"priority":-1}', "text/plain"),
        (b'\xef\xbb\xbf{"priority":-1}', "application/json"),
    ):
        answer = await gateway.ask("POST", CHAT, key, body=body, headers={"Content-Type": kind})
        assert (answer.status, answer.error["code"]) == (400, "model_undetermined")
    assert server.connections == []
