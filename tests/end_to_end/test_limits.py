"""Limits and budgets as a caller meets them: at every level, on every route, and given back however a request ends."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import (
    SWITCHING_PROTOCOLS,
    Answer,
    Gateway,
    begin,
    capped,
    eventually,
    handshake,
    request_bytes,
    server_at,
)
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk, whole
from twisted_vllm.config.settings import EndUserSettings, LedgerSettings, PriceList, Timeouts

CHAT = "/vllm/v1/chat/completions"
MODEL = "simulated-model"
#: one token costs a dollar, so that spend equals tokens
DOLLAR_A_TOKEN = PriceList(input_cost_per_token=Decimal(1), output_cost_per_token=Decimal(1))
#: the server counts 3 + 4 tokens
USED = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
JSON_ANSWER = whole(USED)
EVENTS = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: %b\n\ndata: [DONE]\n\n' % USED
STREAM_ANSWER = EVENT_STREAM + chunk(EVENTS) + LAST
FORBIDDEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"
LEVELS = {"key": "this key", "user": "this key's user", "team": "this key's team", "end_user": "this end user"}


def body_of(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **fields}


async def chat(gateway: Any, key: str, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    answer: Answer = await gateway.ask("POST", CHAT, key, headers=headers, body=body_of(**fields))
    return answer


async def done(gateway: Any, path: str, **body: object) -> None:
    answer = await gateway.ask("POST", path, body=body)
    assert answer.status == 200, answer.body


async def key_with(gateway: Any, level: str, **limits: Any) -> str:
    """Make a key with limits at one level, which also hold for its requests for the end user ``eve``."""
    await done(gateway, "/user/new", user_id="ada", auto_create_key=False, **(limits if level == "user" else {}))
    await done(gateway, "/team/new", team_id="lab", **(limits if level == "team" else {}))
    await done(gateway, "/customer/new", user_id="eve", **(limits if level == "end_user" else {}))
    key: str = await gateway.make_key(user_id="ada", team_id="lab", **(limits if level == "key" else {}))
    return key


def held(gateway: Gateway) -> int:
    """How many requests are counted as in flight at any level, plus the picodollars that are reserved."""
    return gateway.limiter.in_flight + gateway.limiter.reserved


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("limits", "name", "code"),
    [
        ({"rpm_limit": 2}, "rpm_limit", "rate_limit_exceeded"),
        ({"model_rpm_limit": {MODEL: 2}}, "model_rpm_limit", "rate_limit_exceeded"),
        ({"tpm_limit": 40}, "tpm_limit", "rate_limit_exceeded"),
        ({"model_tpm_limit": {MODEL: 40}}, "model_tpm_limit", "rate_limit_exceeded"),
        ({"max_budget": 40, "budget_duration": "30d"}, "max_budget", "budget_exceeded"),
    ],
    ids=["rpm", "model_rpm", "tpm", "model_tpm", "budget"],
)
@pytest_twisted.ensureDeferred
async def test_each_limit_holds_at_each_level_and_says_which_it_is(
    stand_in: Any, gateway_to: Any, level: str, limits: dict[str, Any], name: str, code: str
) -> None:
    server = stand_in(JSON_ANSWER)
    gateway = gateway_to(server.port, default_prices=DOLLAR_A_TOKEN)
    key = await key_with(gateway, level, **limits)
    answers: list[Answer] = []
    while not answers or answers[-1].status == 200:
        answers.append(await chat(gateway, key, user="eve"))
        assert len(answers) < 20
    *admitted, refused = answers
    assert admitted
    assert (refused.status, refused.reason, refused.error["code"]) == (429, b"Too Many Requests", code)
    assert LEVELS[level] in refused.error["message"].lower()
    assert name in refused.error["message"]
    assert int(refused.header("retry-after") or 0) >= 1
    # refused requests reach no server
    assert sum(each.received.count(b"POST /v1") for each in server.connections) == len(admitted)
    if name.endswith("rpm_limit"):
        assert len(admitted) == 2
        assert [answer.header("x-ratelimit-remaining-requests") for answer in answers] == ["1", "0", "0"]
        assert {answer.header("x-ratelimit-limit-requests") for answer in answers} == {"2"}
        assert {answer.header("x-ratelimit-reset-requests") is None for answer in answers} == {False}
    if name.endswith("tpm_limit"):
        assert {answer.header("x-ratelimit-limit-tokens") for answer in answers} == {"40"}
    # other end users are not limited
    if level == "end_user":
        assert (await chat(gateway, key, user="bob")).status == 200
    assert held(gateway) == 0


@pytest.mark.parametrize("level", LEVELS)
@pytest_twisted.ensureDeferred
async def test_parallel_requests_are_limited_at_each_level(stand_in: Any, gateway_to: Any, level: str) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    key = await key_with(gateway, level, max_parallel_requests=1)
    first, upstream = await begin(
        server, gateway, request_bytes("POST", CHAT, key, body=body_of(user="eve")), until=b"messages"
    )
    refused = await chat(gateway, key, user="eve")
    assert (refused.status, refused.error["code"], refused.header("retry-after")) == (429, "rate_limit_exceeded", "1")
    assert LEVELS[level] in refused.error["message"].lower()
    assert "max_parallel_requests" in refused.error["message"]
    upstream.send(JSON_ANSWER)
    await first.until_received(USED)
    server.answer = JSON_ANSWER
    assert (await chat(gateway, key, user="eve")).status == 200


@pytest.mark.parametrize("how", ["body", "header", "configured header", "chunked body", "responses"])
@pytest_twisted.ensureDeferred
async def test_an_end_user_is_known_however_it_is_named(stand_in: Any, gateway_to: Any, how: str) -> None:
    gateway = gateway_to(stand_in(JSON_ANSWER).port, end_users=EndUserSettings(headers=("x-team-member",)))
    if how == "header":
        gateway = gateway_to(stand_in(JSON_ANSWER).port)
    key = await gateway.make_key()
    await done(gateway, "/customer/new", user_id="eve", blocked=True)
    target, headers, body = CHAT, {}, body_of()
    if how == "header":
        headers = {"x-litellm-end-user-id": "eve"}
    elif how == "configured header":
        headers = {"X-Team-Member": "eve"}
    elif how == "responses":
        target, body = "/vllm/v1/responses", {"model": MODEL, "input": "hi", "safety_identifier": "eve"}
    else:
        body["user"] = "eve"
    raw = request_bytes("POST", target, key, headers=headers, body=body)
    if how == "chunked body":
        text = json.dumps(body).encode()
        head = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
        client = await gateway.send(request_bytes("POST", target, key, headers=head))
        await client.next_turn()
        client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text))
        await client.until_received(b"}}")
        assert b"403 Forbidden" in client.received
        assert b"end_user_blocked" in client.received
        return
    refused = await gateway.answer_to(raw)
    assert (refused.status, refused.error["code"]) == (403, "end_user_blocked")
    await done(gateway, "/customer/unblock", user_ids=["eve"])
    assert (await gateway.answer_to(raw)).status == 200


@pytest_twisted.ensureDeferred
async def test_read_only_routes_are_not_limited(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(JSON_ANSWER).port, default_prices=DOLLAR_A_TOKEN)
    key = await gateway.make_key(rpm_limit=0, tpm_limit=0, max_parallel_requests=0, max_budget=0)
    for target in ("/vllm/v1/models", "/vllm/health", "/vllm/metrics", "/vllm/version"):
        answer = await gateway.ask("GET", target, key)
        assert (answer.status, answer.header("x-ratelimit-limit-requests")) == (200, None)
    assert (await chat(gateway, key)).status == 429


@pytest_twisted.ensureDeferred
async def test_what_one_level_refuses_the_others_do_not_count(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(JSON_ANSWER).port, default_prices=DOLLAR_A_TOKEN)
    await done(gateway, "/team/new", team_id="lab", rpm_limit=0)
    key = await gateway.make_key(team_id="lab", rpm_limit=3, tpm_limit=1000, max_budget=1000)
    for _ in range(10):
        assert "this key's team" in (await chat(gateway, key)).error["message"]
    await done(gateway, "/team/update", team_id="lab", rpm_limit=None)
    answer = await chat(gateway, key)
    assert (answer.status, answer.header("x-ratelimit-remaining-requests")) == (200, "2")
    assert held(gateway) == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest_twisted.ensureDeferred
async def test_tokens_and_money_settle_to_what_the_server_said(stand_in: Any, gateway_to: Any, stream: bool) -> None:
    gateway = gateway_to(stand_in(STREAM_ANSWER if stream else JSON_ANSWER).port, default_prices=DOLLAR_A_TOKEN)
    key = await gateway.make_key(tpm_limit=10_000, max_budget=10_000)
    remaining = []
    for number in range(1, 5):
        answer = await chat(gateway, key, stream=stream, max_tokens=500)
        assert answer.status == 200
        # when the head is sent, this request's estimate is reserved, and those before it count by what they used
        remaining.append(int(answer.header("x-ratelimit-remaining-tokens") or 0))
        assert 9_400 - 7 * number < remaining[-1] < 9_500 - 7 * (number - 1)
        assert (gateway.limiter.spent, gateway.limiter.reserved) == (7 * number * 10**12, 0)
    assert len(gateway.limiter) == 1
    assert [remaining[0] - each for each in remaining] == [0, 7, 14, 21]


@pytest_twisted.ensureDeferred
async def test_an_error_of_the_server_s_costs_nothing(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(FORBIDDEN).port, default_prices=DOLLAR_A_TOKEN)
    key = await gateway.make_key(tpm_limit=100, max_budget=100)
    for _ in range(5):
        answer = await chat(gateway, key)
        assert (answer.status, answer.header("x-ratelimit-limit-tokens")) == (500, "100")
    limiter = gateway.limiter
    assert (len(limiter), limiter.spent, limiter.reserved) == (1, 0, 0)


@pytest_twisted.ensureDeferred
async def test_a_changed_limit_acts_on_the_next_request(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(JSON_ANSWER).port)
    key = await gateway.make_key()
    assert (await chat(gateway, key)).status == 200
    for limit, status in ((0, 429), (5, 200), (1, 429), (None, 200)):
        await done(gateway, "/key/update", key=key, rpm_limit=limit)
        assert (await chat(gateway, key)).status == status, limit


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"simulated-model","model":"other"}',
        b'{"messages":[]}',
        b'{"model":',
        b'{"model":"simulated-model"} x',
    ],
    ids=["twice", "none", "cut", "more"],
)
@pytest_twisted.ensureDeferred
async def test_a_limit_of_one_model_cannot_be_passed_by_a_model_that_is_unclear(
    stand_in: Any, gateway_to: Any, body: bytes
) -> None:
    server = stand_in(JSON_ANSWER)
    gateway = gateway_to(server.port)
    key = await gateway.make_key(model_rpm_limit={MODEL: 1})
    headers = {"Content-Type": "application/json"}
    refused = await gateway.ask("POST", CHAT, key, headers=headers, body=body)
    assert (refused.status, refused.error["code"]) == (400, "model_undetermined")
    assert server.connections == []
    chunked = {**headers, "Transfer-Encoding": "chunked"}
    for status in (200, 429):
        client = await gateway.send(request_bytes("POST", CHAT, key, headers=chunked))
        await client.next_turn()
        text = json.dumps(body_of()).encode()
        client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text))
        await client.until_received(b"HTTP/1.1 %d " % status)


# every ending gives back what was reserved


@attrs.define
class Scene:
    """A gateway, and a key that may have one request in flight."""

    gateway: Any
    server: Any
    reactor: Any
    key: str

    def raw(self, **fields: Any) -> bytes:
        return request_bytes("POST", CHAT, self.key, body=body_of(**fields))

    async def begin(self, raw: bytes | None = None) -> tuple[Any, Any]:
        before = len(self.server.connections)
        client = await self.gateway.send(self.raw() if raw is None else raw)
        await eventually(self.reactor, lambda: client.received or len(self.server.connections) > before)
        assert client.received == b""
        upstream = self.server.connections[before]
        await upstream.until_received(b"\r\n\r\n")
        assert held(self.gateway) > 0
        return client, upstream


async def answered(scene: Scene) -> None:
    client, upstream = await scene.begin()
    upstream.send(JSON_ANSWER)
    await client.until_received(USED)


async def client_gone_before_the_head(scene: Scene) -> None:
    client, _ = await scene.begin()
    client.cut()


async def client_gone_in_a_stream(scene: Scene) -> None:
    client, upstream = await scene.begin(scene.raw(stream=True))
    upstream.send(STREAM_ANSWER[:-7])
    await client.until_received(b"[DONE]")
    client.cut()


async def client_gone_in_an_upload(scene: Scene) -> None:
    # JSON is read first, and where tokens are limited a form too, and nothing is reserved meanwhile
    key = await scene.gateway.make_key(max_parallel_requests=1)
    head = {"Content-Length": "5000000", "Content-Type": "multipart/form-data; boundary=b"}
    form = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(100_000)
    )
    client, _ = await scene.begin(request_bytes("POST", "/vllm/v1/audio/transcriptions", key, headers=head) + form)
    client.cut()


async def server_gone_before_the_head(scene: Scene) -> None:
    client, upstream = await scene.begin()
    upstream.cut()
    await client.until_received(b"502 Bad Gateway")


async def server_gone_in_a_stream(scene: Scene) -> None:
    client, upstream = await scene.begin(scene.raw(stream=True))
    upstream.send(STREAM_ANSWER[:-7])
    await client.until_received(b"[DONE]")
    upstream.cut()
    await client.until_lost()


async def server_talks_nonsense(scene: Scene) -> None:
    client, upstream = await scene.begin()
    upstream.send(b"nonsense\r\n\r\n")
    await client.until_received(b"502 Bad Gateway")


async def server_error(scene: Scene) -> None:
    client, upstream = await scene.begin()
    upstream.send(FORBIDDEN)
    await client.until_received(b"\r\n\r\nno")


async def usage_that_is_no_number(scene: Scene) -> None:
    for value in (b'"many"', b"-5", b"1e400", b"9" * 40, b"[]"):
        client, upstream = await scene.begin()
        text = b'{"usage":{"prompt_tokens":%b,"completion_tokens":%b}}' % (value, value)
        upstream.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (len(text), text)
        )
        await client.until_received(text)
        assert held(scene.gateway) == 0


async def server_too_slow(scene: Scene) -> None:
    client, _ = await scene.begin()
    scene.gateway.pass_time(6)
    await client.until_received(b"504 Gateway Timeout")


async def a_tunnel(scene: Scene) -> None:
    client, upstream = await scene.begin(handshake(scene.key))
    upstream.send(SWITCHING_PROTOCOLS)
    await client.until_received(b"\r\n\r\n")
    assert held(scene.gateway) > 0
    client.close()
    await upstream.until_lost()


async def an_upgrade_that_is_refused(scene: Scene) -> None:
    client, upstream = await scene.begin(handshake(scene.key))
    upstream.send(FORBIDDEN)
    await client.until_received(b"\r\n\r\nno")


async def a_form(scene: Scene) -> None:
    text = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nsimulated-model\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    )
    head = {"Content-Type": "multipart/form-data; boundary=b"}
    raw = request_bytes("POST", "/vllm/v1/audio/transcriptions", scene.key, headers=head, body=text)
    client, upstream = await scene.begin(raw)
    upstream.send(JSON_ANSWER)
    await client.until_received(USED)


async def a_large_form_with_a_second_model(scene: Scene) -> None:
    head = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "3000000"}
    part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nsimulated-model\r\n'
    raw = request_bytes("POST", "/vllm/v1/audio/transcriptions", scene.key, headers=head)
    client, _ = await scene.begin(raw + part + b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n')
    client.send(b"x" * 100_000 + b"\r\n" + part + b"--b")
    await client.until_received(b"400 Bad Request")


async def revoked(scene: Scene) -> None:
    client, _ = await scene.begin()
    await done(scene.gateway, "/key/block", key=scene.key)
    scene.gateway.clock.advance(0.2)
    await client.until_received(b"401 Unauthorized")
    await done(scene.gateway, "/key/unblock", key=scene.key)


async def a_fault_of_the_gateway_s_own(scene: Scene) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twisted_vllm.proxy.forwarding.Relay", lambda *_: 1 / 0)
        answer = await scene.gateway.answer_to(scene.raw())
    assert answer.status == 500


ENDINGS = [
    answered,
    client_gone_before_the_head,
    client_gone_in_a_stream,
    client_gone_in_an_upload,
    server_gone_before_the_head,
    server_gone_in_a_stream,
    server_talks_nonsense,
    server_error,
    usage_that_is_no_number,
    server_too_slow,
    a_tunnel,
    an_upgrade_that_is_refused,
    a_form,
    a_large_form_with_a_second_model,
    revoked,
    a_fault_of_the_gateway_s_own,
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
@pytest_twisted.ensureDeferred
async def test_nothing_stays_reserved_however_a_request_ends(
    stand_in: Any, gateway_to: Any, reactor: Any, logged_failures: Any, ending: Any
) -> None:
    server = stand_in()
    timeouts = Timeouts(response_head=5)
    gateway = gateway_to(server_at(server.port, timeouts=timeouts), default_prices=DOLLAR_A_TOKEN, revoke_running=True)
    # what a WebSocket uses cannot be limited
    limits = {} if ending in (a_tunnel, an_upgrade_that_is_refused) else {"max_budget": 10**6, "tpm_limit": 10**9}
    key = await gateway.make_key(max_parallel_requests=1, allowed_routes=["inference", "/v1/realtime"], **limits)
    await ending(Scene(gateway, server, reactor, key))
    await eventually(reactor, lambda: held(gateway) == 0)
    server.answer = JSON_ANSWER
    for connection in server.connections:
        if connection.lost is None:
            connection.cut()
    assert (await chat(gateway, key)).status == 200
    if ending is a_fault_of_the_gateway_s_own:
        assert logged_failures.flush(ZeroDivisionError)


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_there_leaves_nothing_reserved(gateway_to: Any) -> None:
    port = free_port()
    gateway = gateway_to(port, default_prices=DOLLAR_A_TOKEN)
    key = await gateway.make_key(max_parallel_requests=1, max_budget=10**6)
    for _ in range(3):
        assert (await chat(gateway, key)).error["code"] == "upstream_unreachable"
    assert held(gateway) == 0


@pytest.mark.parametrize("ending", ["turned away", "waited too long", "left the queue"])
@pytest_twisted.ensureDeferred
async def test_a_request_that_was_never_sent_uses_nothing(
    stand_in: Any, gateway_to: Any, reactor: Any, ending: str
) -> None:
    server = stand_in()
    places = 0 if ending == "turned away" else 5
    gateway = gateway_to(capped(server.port, places=places, queue=3.0), default_prices=DOLLAR_A_TOKEN)
    await gateway.send(request_bytes("POST", CHAT, body=body_of()))
    upstream = await server.connection()
    key = await gateway.make_key(
        max_parallel_requests=1, max_budget=1000, rpm_limit=1, model_rpm_limit={MODEL: 1}, tpm_limit=1000
    )
    for _ in range(3):
        client = await gateway.send(request_bytes("POST", CHAT, key, body=body_of()))
        if ending != "turned away":
            await eventually(reactor, lambda: gateway.queued == 1)
        if ending == "waited too long":
            gateway.pass_time(4)
        if ending == "left the queue":
            client.cut()
            await eventually(reactor, lambda: held(gateway) == 0)
        else:
            await client.until_received(b"server_busy")
    assert held(gateway) == 0
    assert gateway.limiter.spent == 0
    upstream.send(JSON_ANSWER)
    server.answer = JSON_ANSWER
    await eventually(reactor, lambda: gateway.request_lines()[-1]["status"] == 200)
    assert (await chat(gateway, key)).status == 200
    assert (await chat(gateway, key)).error["code"] == "rate_limit_exceeded"


@pytest_twisted.ensureDeferred
async def test_a_drain_that_cuts_leaves_nothing_reserved(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, drain_timeout=1.0)
    key = await gateway.make_key(max_parallel_requests=1)
    client = await gateway.send(request_bytes("POST", CHAT, key, body=body_of()))
    await (await server.connection()).until_received(b"messages")
    assert held(gateway) == 1
    stopped = gateway.stop()
    gateway.pass_time(2)
    await client.until_lost()
    await stopped
    assert held(gateway) == 0


@pytest_twisted.ensureDeferred
async def test_a_soft_budget_is_logged_once_and_refuses_nobody(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(JSON_ANSWER).port, default_prices=DOLLAR_A_TOKEN)
    key = await gateway.make_key(soft_budget=10)
    for _ in range(5):
        assert (await chat(gateway, key)).status == 200
    [line] = [line for line in gateway.log_lines() if "soft budget" in line.get("message", "")]
    assert "has spent 14 USD in this period, over its soft budget of 10 USD" in line["message"]
    assert line["level"] == "warn"


@pytest_twisted.ensureDeferred
async def test_reset_spend_opens_again_at_once(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    gateway = gateway_to(stand_in(JSON_ANSWER).port, default_prices=DOLLAR_A_TOKEN)
    key = await gateway.make_key(max_budget=50)
    while (await chat(gateway, key)).status == 200:
        pass
    info = f"/key/info?key={key}"

    async def spend() -> Any:
        return (await gateway.ask("GET", info)).json["info"]["spend"]

    async def spooled() -> bool:
        return b"\nvllm_passthrough_ledger_spool_rows 0.0" not in (await gateway.ask("GET", "/metrics")).body

    # a reset covers what the database has
    while await spend() < 7 or await spooled():
        await deferLater(reactor, 0.01, lambda: None)
    await done(gateway, f"/key/{key}/reset_spend", reset_to=0)
    assert (await chat(gateway, key)).status == 200


@pytest.mark.parametrize("enabled", [True, False])
@pytest_twisted.ensureDeferred
async def test_limits_hold_with_and_without_a_ledger(stand_in: Any, gateway_to: Any, enabled: bool) -> None:
    gateway = gateway_to(stand_in(JSON_ANSWER).port, ledger=LedgerSettings(enabled=enabled))
    key = await key_with(gateway, "end_user", rpm_limit=1)
    assert [(await chat(gateway, key, user="eve")).status for _ in range(2)] == [200, 429]
