"""Prompts and answers reach what gets the events of requests, as the settings, models, teams and keys say."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import (
    MASTER_KEY,
    SWITCHING_PROTOCOLS,
    Gateway,
    begin,
    eventually,
    handshake,
    parse_answer,
    request_bytes,
    server_at,
    unchunked,
)
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk, whole
from tests.observability.delivery.receiver import Receiver
from twisted_vllm.config.log_bodies import LogBodiesSettings
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import LedgerSettings, ModelEntry, RoutingSettings
from twisted_vllm.config.sinks import SinkSettings
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.request_event import RequestEvent

ANSWERS = Path(__file__).parents[1] / "usage" / "answers"
CHAT = "/vllm/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is up?"}]
FULL = LogBodiesSettings(mode="full")


def chat_stream(*texts: str, usage: bool = False) -> bytes:
    """Return a stream of vLLM's, with the event of the usage if it is asked for."""
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    chunks: list[dict[str, Any]] = [
        {**common, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
        for delta in deltas
    ]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    if usage:
        counts = {"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 3 + len(texts)}
        chunks.append({**common, "choices": [], "usage": counts})
    events = [json.dumps(each, separators=(",", ":"), ensure_ascii=False).encode() for each in chunks]
    return b"".join(b"data: %b\n\n" % event for event in [*events, b"[DONE]"])


class Kept:
    """Gets the events of a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.events: list[RequestEvent] = []
        telemetry = gateway.service.wiring.telemetry
        gateway.service.wiring.telemetry._events.consumers = (self.take,)
        telemetry.prepare(gateway.settings)()

    def take(self, event: RequestEvent, context: RequestContext) -> None:
        self.events.append(event)

    async def of(self, reactor: Any, number: int = 0) -> Any:
        """Return the contents of one request once it is told of; None without any."""
        await eventually(reactor, lambda: len(self.events) > number)
        contents = self.events[number].contents
        return None if contents is None else json.loads(bytes(contents))


@pytest_twisted.ensureDeferred
async def test_a_chat_is_kept_with_prompt_and_answer(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Much."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    server = stand_in(whole(json.dumps(body).encode()))
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    await gateway.ask("POST", CHAT, body={"model": "m", "temperature": 0.5, "messages": MESSAGES})
    assert await kept.of(reactor) == {
        "mode": "full",
        "input": MESSAGES,
        "parameters": {"temperature": 0.5},
        "output": {"text": "Much.", "finish_reasons": ["stop"]},
        "truncated": False,
    }


@pytest_twisted.ensureDeferred
async def test_metrics_count_what_is_kept_whole_and_what_is_cut(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(answering("Much."))
    gateway = gateway_to(server.port, log_bodies=LogBodiesSettings(mode="full", max_prompt_bytes=200))
    kept = Kept(gateway)
    for number, text in enumerate(("Short.", "Long. " * 100)):
        await gateway.ask("POST", CHAT, body={"model": "m", "messages": [{"role": "user", "content": text}]})
        assert (await kept.of(reactor, number))["truncated"] == bool(number)
    exposed = (await gateway.ask("GET", "/metrics", headers={"Host": "localhost"})).body.decode()
    figures = dict(re.findall(r"^vllm_passthrough_(contents_\S+) (\S+)$", exposed, re.MULTILINE))
    assert figures == {
        'contents_total{result="whole"}': "1.0",
        'contents_total{result="truncated"}': "1.0",
        'contents_total{result="failed"}': "0.0",
        "contents_bytes": "0.0",
    }


@pytest_twisted.ensureDeferred
async def test_a_stream_is_put_together(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    asked = {"model": "m", "messages": MESSAGES, "stream": True}
    client, upstream = await begin(server, gateway, request_bytes("POST", CHAT, body=asked), until=b"true}")
    stream = chat_stream("Hello", " wörld", "!", usage=True)
    upstream.send(EVENT_STREAM)
    for at in range(0, len(stream), 37):
        upstream.send(chunk(stream[at : at + 37]))
        await upstream.next_turn()
    upstream.send(LAST)
    await client.until(lambda: client.received.endswith(LAST))
    found = await kept.of(reactor)
    assert found["output"] == {"text": "Hello wörld!", "finish_reasons": ["stop"]}
    assert found["input"] == MESSAGES
    assert not found["truncated"]
    assert parse_answer(client.received).body == chat_stream("Hello", " wörld", "!")


def answering(text: str = "Much.", **more: Any) -> bytes:
    """Return a chat's answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return whole(json.dumps({"choices": [choice], **more}).encode())


# who says what is kept


@pytest.mark.parametrize(
    ("settings", "key", "team", "headers", "more", "mode"),
    [
        ({}, {}, {}, {}, {}, None),
        ({}, {"log_bodies": "full"}, {}, {}, {}, "full"),
        ({}, {}, {"log_bodies": "metadata"}, {}, {}, "metadata"),
        ({}, {"log_bodies": "full"}, {"log_bodies": "metadata"}, {}, {}, "full"),
        ({}, {"log_bodies": "full"}, {"log_bodies": "off"}, {}, {}, None),
        ({"mode": "full"}, {"log_bodies": "off"}, {}, {}, {}, None),
        ({"mode": "full"}, {"metadata": {"turn_off_message_logging": True}}, {}, {}, {}, None),
        ({"mode": "full", "models": {"m*": "metadata"}}, {}, {}, {}, {}, "metadata"),
        ({"mode": "full", "models": {"m": "off"}}, {"log_bodies": "full"}, {}, {}, {}, None),
        ({"models": {"m": "full"}}, {}, {}, {}, {}, "full"),
        ({"mode": "full"}, {}, {}, {"x-litellm-no-log": "true"}, {}, None),
        ({"mode": "full", "allow_no_log": False}, {}, {}, {"x-litellm-no-log": "true"}, {}, "full"),
        ({"mode": "full"}, {}, {}, {}, {"no-log": True}, None),
        ({"mode": "full", "allow_no_log": False}, {}, {}, {}, {"no-log": True}, "full"),
        ({"mode": "full"}, {}, {}, {"x-litellm-enable-message-redaction": "true"}, {}, "metadata"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_settings_models_teams_keys_and_clients_say_what_is_kept(
    reactor: Any,
    stand_in: Any,
    gateway_to: Any,
    settings: dict[str, Any],
    key: dict[str, Any],
    team: dict[str, Any],
    headers: dict[str, str],
    more: dict[str, Any],
    mode: str | None,
) -> None:
    gateway = gateway_to(stand_in(answering()).port, log_bodies=LogBodiesSettings(**settings))
    assert (await gateway.ask("POST", "/team/new", body={"team_id": "t", **team})).status == 200
    caller = await gateway.make_key(team_id="t", **key)
    kept = Kept(gateway)
    body = {"model": "m", "messages": MESSAGES, **more}
    assert (await gateway.ask("POST", CHAT, caller, body=body, headers=headers)).status == 200
    found = await kept.of(reactor)
    assert (found and found["mode"]) == mode
    if mode == "metadata":
        assert found["input"] == [{"role": "user", "length": 11}]
        assert found["output"] == {"length": 5, "finish_reasons": ["stop"]}
        assert "What is up" not in json.dumps(found)


@pytest_twisted.ensureDeferred
async def test_the_operator_s_switch_leaves_no_texts(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(
        stand_in(answering()).port, log_bodies=FULL, turn_off_message_logging=True, global_disable_no_log_param=True
    )
    kept = Kept(gateway)
    caller = await gateway.make_key(log_bodies="full")
    await gateway.ask(
        "POST", CHAT, caller, body={"model": "m", "messages": MESSAGES}, headers={"x-litellm-no-log": "1"}
    )
    await eventually(reactor, lambda: len(kept.events) == 2)
    assert (await kept.of(reactor, 1))["mode"] == "metadata"


@pytest_twisted.ensureDeferred
async def test_people_may_switch_it_off_for_themselves_and_not_on(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(answering()).port)
    graces = (await gateway.ask("POST", "/user/new", body={"user_id": "grace"})).json["key"]

    async def status(path: str, **body: object) -> int:
        answer = await gateway.ask("POST", path, graces, body=body)
        return int(answer.status)

    assert await status("/key/generate", log_bodies="full") == 403
    assert await status("/key/generate", log_bodies="metadata") == 403
    made = (await gateway.ask("POST", "/key/generate", graces, body={"log_bodies": "off"})).json
    assert made["log_bodies"] == "off"
    assert await status("/key/update", key=made["key"], log_bodies="full") == 403
    # nor undo what an administrator may have meant
    assert await status("/key/update", key=made["key"], log_bodies=None) == 403
    assert await status("/key/update", key=graces, log_bodies="off") == 200
    assert await status("/team/new", team_id="t", log_bodies="full") == 403


@pytest_twisted.ensureDeferred
async def test_a_team_s_administrator_cannot_switch_it_on_for_its_members(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(answering()).port)
    graces = (await gateway.ask("POST", "/user/new", body={"user_id": "grace"})).json["key"]
    members = [{"user_id": "grace", "role": "admin"}]
    assert (await gateway.ask("POST", "/team/new", body={"team_id": "t", "members_with_roles": members})).status == 200
    others = await gateway.make_key(team_id="t", user_id="bob", log_bodies="off")
    for mode in ("full", "metadata", None):
        assert (
            await gateway.ask("POST", "/key/update", graces, body={"key": others, "log_bodies": mode})
        ).status == 403
        body = {"team_id": "t", "log_bodies": mode or "full"}
        assert (await gateway.ask("POST", "/team/update", graces, body=body)).status == 403


@pytest_twisted.ensureDeferred
async def test_litellm_s_opt_out_of_a_key_outlasts_later_changes(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(answering()).port)
    opted = {"logging": [{"callback_vars": {"turn_off_message_logging": True}}]}
    key = await gateway.make_key(log_bodies="full", metadata=opted)
    answer = await gateway.ask("POST", "/key/update", body={"key": key, "log_bodies": "full"})
    assert answer.json["log_bodies"] == "off"
    answer = await gateway.ask("POST", "/key/update", body={"key": key, "log_bodies": "full", "metadata": {}})
    assert answer.json["log_bodies"] == "full"
    answer = await gateway.ask("POST", "/team/new", body={"team_id": "t", "metadata": opted})
    assert answer.json["log_bodies"] == "off"


# what becomes of requests


@pytest_twisted.ensureDeferred
async def test_nothing_is_gathered_while_nothing_gets_events(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(answering()).port, log_bodies=FULL)
    assert gateway.service.wiring._forwarder.contents is None
    kept = Kept(gateway)
    assert gateway.service.wiring._forwarder.contents is not None
    gateway.service.wiring.telemetry._events.consumers = ()
    gateway.service.wiring.telemetry.prepare(gateway.settings)()
    assert gateway.service.wiring._forwarder.contents is None
    assert kept.events == []


@pytest_twisted.ensureDeferred
async def test_a_reload_changes_what_is_kept_from_the_next_request_on(
    reactor: Any, stand_in: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(stand_in(answering()).port)
    kept = Kept(gateway)
    for number, mode in enumerate(("off", "full", "metadata", "off")):
        settings = attrs.evolve(gateway.settings, log_bodies=LogBodiesSettings(mode=mode))
        _, apply = gateway.service.wiring.prepare(settings)
        apply()
        gateway.service.wiring.telemetry._events.consumers = (kept.take,)
        gateway.service.wiring.telemetry.prepare(settings)()
        await gateway.ask("POST", CHAT, body={"model": "m", "messages": MESSAGES})
        found = await kept.of(reactor, number)
        assert (found["mode"] if found else "off") == mode


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (LogBodiesSettings(mode="off"), None),
        (LogBodiesSettings(mode="metadata"), "metadata"),
        (LogBodiesSettings(mode="full", models={"m": "off"}), None),
        (LogBodiesSettings(mode="full", max_prompt_bytes=2000), "full"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_a_reload_switches_off_is_not_kept_of_requests_that_run(
    reactor: Any, stand_in: Any, gateway_to: Any, later: LogBodiesSettings, expected: str | None
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    asked = {"model": "m", "messages": MESSAGES, "stream": True}
    client, upstream = await begin(server, gateway, request_bytes("POST", CHAT, body=asked), until=b"true}")
    upstream.send(EVENT_STREAM)
    upstream.send(chunk(chat_stream("Hello")))
    await client.until(lambda: b"Hello" in client.received)
    settings = attrs.evolve(gateway.settings, log_bodies=later)
    _, apply = gateway.service.wiring.prepare(settings)
    apply()
    upstream.send(LAST)
    await client.until(lambda: client.received.endswith(LAST))
    found = await kept.of(reactor)
    assert (found and found["mode"]) == expected


@pytest_twisted.ensureDeferred
async def test_secrets_are_struck_out_of_prompts_and_answers(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, log_bodies=LogBodiesSettings(mode="full", redact_fields=("metadata.secret",)))
    key = await gateway.make_key()
    kept = Kept(gateway)
    server.answer = answering(f"Your key is {key}, the master's is {MASTER_KEY}")
    messages = [{"role": "user", "content": f"Mine is {key}"}]
    body = {"model": "m", "messages": messages, "metadata": {"secret": "hush", "public": "x"}}
    await gateway.ask("POST", CHAT, key, body=body)
    found = await kept.of(reactor)
    assert found["input"][0]["content"] == "Mine is ***"
    assert found["output"]["text"] == "Your key is ***, the master's is ***"
    assert found["parameters"] == {"metadata": {"secret": "[redacted]", "public": "x"}}
    assert "Mine is" not in gateway.log_text()
    assert "hush" not in gateway.log_text()


@pytest_twisted.ensureDeferred
async def test_a_refused_request_is_not_kept(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(answering()).port, log_bodies=FULL)
    key = await gateway.make_key(models=["other"], rpm_limit=1)
    limited = await gateway.make_key(rpm_limit=1)
    kept = Kept(gateway)
    body = {"model": "m", "messages": MESSAGES}
    for caller, status in ((key, 403), (limited, 200), (limited, 429), ("sk-unknown-key-000000", 401)):
        assert (await gateway.ask("POST", CHAT, caller, body=body)).status == status
    assert [await kept.of(reactor, number) is not None for number in range(4)] == [False, True, False, False]


@pytest_twisted.ensureDeferred
async def test_an_error_of_the_server_is_the_answer(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    error = {"message": "too long", "type": "BadRequestError", "code": 400}
    server = stand_in(whole(json.dumps({"error": error}).encode(), "400 Bad Request"))
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    await gateway.ask("POST", CHAT, body={"model": "m", "messages": MESSAGES})
    assert (await kept.of(reactor))["output"] == {"error": error}


@pytest_twisted.ensureDeferred
async def test_a_server_that_gives_no_answer_leaves_the_prompt(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    client, upstream = await begin(
        server, gateway, request_bytes("POST", CHAT, body={"model": "m", "messages": MESSAGES})
    )
    upstream.cut()
    await client.until_received(b"502")
    found = await kept.of(reactor)
    assert (found["input"], found["output"]) == (MESSAGES, None)


@pytest.mark.parametrize("who", ["client", "server"])
@pytest_twisted.ensureDeferred
async def test_a_stream_that_ends_early_is_kept_as_far_as_it_came(
    reactor: Any, stand_in: Any, gateway_to: Any, who: str
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    asked = {"model": "m", "messages": MESSAGES, "stream": True}
    client, upstream = await begin(server, gateway, request_bytes("POST", CHAT, body=asked), until=b"true}")
    upstream.send(EVENT_STREAM + chunk(chat_stream("Hel", "lo ", "there")[:-60]))
    await client.until_received(b"lo ")
    (client if who == "client" else upstream).cut()
    assert (await kept.of(reactor))["output"] == {"text": "Hello ", "finish_reasons": [""]}


@pytest_twisted.ensureDeferred
async def test_what_was_gathered_is_told_before_the_gateway_stops(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, log_bodies=FULL, drain_timeout=0.0)
    kept = Kept(gateway)
    asked = {"model": "m", "messages": MESSAGES, "stream": True}
    client, upstream = await begin(server, gateway, request_bytes("POST", CHAT, body=asked), until=b"true}")
    upstream.send(EVENT_STREAM + chunk(chat_stream("Hel", "lo ", "there")[:-60]))
    await client.until_received(b"lo ")
    await gateway.stop()
    [event] = kept.events
    assert event.contents is not None
    assert b"Hello " in bytes(event.contents)


@pytest_twisted.ensureDeferred
async def test_a_form_is_kept_without_its_file(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()

    def respond(wire: Any) -> None:
        if wire.received.endswith(b"--frontier--\r\n"):
            wire.received = b""
            wire.send(whole(b'{"text": "what was said"}'))

    server.respond = respond
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)

    def field(name: str, value: bytes, more: bytes = b"") -> bytes:
        head = b'--frontier\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n' % (name.encode(), more)
        return head + value + b"\r\n"

    parts = (
        field("file", b"RIFF secret sound", b'; filename="a.wav"'),
        field("model", b"whisper"),
        field("prompt", b"names: Ada"),
        field("language", b"en"),
    )
    form = b"".join(parts) + b"--frontier--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=frontier"}
    for number, padding in enumerate((b"", b"x" * 1_500_000)):
        body = field("file", padding, b'; filename="b.wav"') + form if padding else form
        answer = await gateway.ask("POST", "/vllm/v1/audio/transcriptions", body=body, headers=kind)
        assert answer.status == 200
        found = await kept.of(reactor, number)
        assert found["input"] == {"prompt": "names: Ada", "language": "en"}
        assert found["output"]["text"] == "what was said"
        assert "secret sound" not in json.dumps(found)


@pytest_twisted.ensureDeferred
async def test_the_prompt_of_a_body_that_streams_is_kept(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(
        stand_in(answering()).port,
        ledger=LedgerSettings(enabled=False),
        log_bodies=LogBodiesSettings(mode="full", max_prompt_bytes=1000),
    )
    kept = Kept(gateway)
    messages = [*MESSAGES, {"role": "user", "content": "long " * 50_000}]
    assert (await gateway.ask("POST", CHAT, body={"messages": messages, "model": "m"})).status == 200
    found = await kept.of(reactor)
    assert found["input"][0] == MESSAGES[0]
    assert found["input"][1]["content"].startswith("long long")
    assert found["truncated"]


@pytest.mark.parametrize("size", [100_000, 3_000_000])
@pytest_twisted.ensureDeferred
async def test_of_a_large_body_the_text_behind_its_media_is_kept(
    reactor: Any, stand_in: Any, gateway_to: Any, size: int
) -> None:
    server = stand_in(answering())
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * (size // 8)}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}]
    assert (await gateway.ask("POST", CHAT, body={"model": "m", "messages": messages})).status == 200
    found = await kept.of(reactor)
    [shown, text] = found["input"][0]["content"]
    assert shown["image_url"]["url"] == f"[image/png: {size // 8 * 8 + 22} bytes, not kept]"
    assert text["text"] == "What is this?"


@pytest_twisted.ensureDeferred
async def test_an_opt_out_in_a_large_body_counts(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(answering()).port, log_bodies=FULL)
    kept = Kept(gateway)
    for number, size in enumerate((100_000, 3_000_000)):
        body = {"model": "m", "messages": [{"role": "user", "content": "word " * (size // 5)}], "no-log": True}
        assert (await gateway.ask("POST", CHAT, body=body)).status == 200
        assert await kept.of(reactor, number) is None


@pytest_twisted.ensureDeferred
async def test_a_websocket_is_not_kept(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    client, upstream = await begin(server, gateway, handshake())
    upstream.send(SWITCHING_PROTOCOLS)
    await client.until_received(b"101")
    client.send(b"a prompt")
    await upstream.until_received(b"a prompt")
    client.cut()
    assert await kept.of(reactor) is None


@pytest_twisted.ensureDeferred
async def test_only_the_answer_that_the_client_got_is_kept(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    bad = stand_in(whole(b'{"error":"busy"}', "503 Service Unavailable"))
    good = stand_in(answering("from the second"))
    models = tuple(ModelEntry("m", "m", server_at(each.port)) for each in (bad, good))
    gateway = gateway_to(None, models=models, routing=RoutingSettings(routing_strategy="round-robin"), log_bodies=FULL)
    kept = Kept(gateway)
    await gateway.ask("POST", CHAT, body={"model": "m", "messages": MESSAGES})
    assert (await kept.of(reactor))["output"]["text"] == "from the second"


@pytest.mark.parametrize(
    ("first", "second", "mode"), [("full", "full", "full"), ("off", "full", None), ("full", "off", None)]
)
@pytest_twisted.ensureDeferred
async def test_a_fallback_keeps_no_more_than_either_model_allows(
    reactor: Any, stand_in: Any, gateway_to: Any, first: str, second: str, mode: str | None
) -> None:
    bad, good = stand_in(whole(b"{}", "503 Service Unavailable")), stand_in(answering())
    models = (
        ModelEntry("m", "m", server_at(bad.port), log_bodies=first),
        ModelEntry("n", "n", server_at(good.port), log_bodies=second),
    )
    gateway = gateway_to(None, models=models, routing=RoutingSettings(fallbacks={"m": ("n",)}))
    kept = Kept(gateway)
    assert (await gateway.ask("POST", CHAT, body={"model": "m", "messages": MESSAGES})).status == 200
    found = await kept.of(reactor)
    assert (found and found["mode"]) == mode


@pytest_twisted.ensureDeferred
async def test_the_text_of_a_background_response_is_kept_when_it_is_fetched(
    reactor: Any, stand_in: Any, gateway_to: Any
) -> None:
    queued = {"id": "resp_0123456789abcdef", "status": "queued", "output": []}
    server = stand_in(whole(json.dumps(queued).encode()))
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    await gateway.ask(
        "POST", "/vllm/v1/responses", body={"model": "m", "input": "Hi", "background": True, "store": True}
    )
    found = await kept.of(reactor)
    assert (found["input"], found["output"]) == ("Hi", {"text": "", "finish_reasons": ["queued"]})
    done = {**queued, "status": "completed", "output": [{"type": "message", "content": [{"text": "Hello"}]}]}
    server.answer = whole(json.dumps(done).encode())
    await gateway.ask("GET", "/vllm/v1/responses/resp_0123456789abcdef")
    found = await kept.of(reactor, 1)
    assert (found["input"], found["output"]["text"]) == (None, "Hello")


# the bytes on the wire


STREAM = chat_stream("Hel", "lo", usage=True)


@pytest.mark.parametrize(
    ("answer", "sizes"),
    [
        (STREAM, (1,)),
        (STREAM, (5, 300, 1)),
        (STREAM.replace(b"\n", b"\r\n"), (7,)),
        (STREAM[:-30], (40,)),
        (b": a comment\n\n" + STREAM + b"data: x", (64,)),
        (b"data: {broken\n\ndata: \xff\xfe\n\n" + STREAM, (11,)),
        (gzip.compress(STREAM), (3, 50)),
    ],
)
@pytest.mark.parametrize(("cut", "held"), [(False, False), (True, False), (False, True)])
@pytest_twisted.ensureDeferred
async def test_the_client_gets_the_same_bytes_with_and_without(
    reactor: Any, stand_in: Any, gateway_to: Any, answer: bytes, sizes: tuple[int, ...], cut: bool, held: bool
) -> None:
    received = []
    for mode in ("off", "metadata", "full"):
        server = stand_in()
        # with another server to go on to, the head of a stream is held until its body begins
        models = tuple(ModelEntry("m", "m", server_at(each.port)) for each in (server, stand_in()))
        more = {"models": models, "routing": RoutingSettings(routing_strategy="round-robin")} if held else {}
        settings = LogBodiesSettings(mode=mode, max_answer_bytes=3)
        gateway = gateway_to(server.port, log_bodies=settings, **more)
        kept = Kept(gateway)
        asked = {"model": "m", "messages": MESSAGES, "stream": True}
        raw = request_bytes("POST", CHAT, body=asked, headers={"X-Request-Id": "the-same"})
        client, upstream = await begin(server, gateway, raw, until=b"true}")
        encoding = b"Content-Encoding: gzip\r\n" if answer.startswith(b"\x1f\x8b") else b""
        upstream.send(EVENT_STREAM.replace(b"Transfer", encoding + b"Transfer"))
        at = number = 0
        while at < len(answer):
            size = sizes[number % len(sizes)]
            upstream.send(chunk(answer[at : at + size]))
            at, number = at + size, number + 1
            if len(answer) / size < 100 or number % 50 == 0:
                await upstream.next_turn()
        if cut:
            upstream.cut()
            await client.until_lost()
        else:
            upstream.send(LAST)
            await client.until_received(LAST)
        found = await kept.of(reactor)
        assert (found is None) is (mode == "off")
        head, _, body = client.received.partition(b"\r\n\r\n")
        lines = sorted(line for line in head.split(b"\r\n") if not line.lower().startswith(b"date:"))
        received.append((lines, unchunked(body) if not cut else body.replace(b"\r\n", b"")))
    assert received[0][0] == received[1][0] == received[2][0]
    if not cut:
        assert received[0][1] == received[1][1] == received[2][1]


# where it goes


@pytest_twisted.ensureDeferred
async def test_a_webhook_gets_them_and_the_log_and_the_ledger_do_not(
    reactor: Any, stand_in: Any, gateway_to: Any
) -> None:
    receiver = Receiver(reactor)
    await receiver.start()
    try:
        hook = SinkSettings(name="hook", type="webhook", events=("requests",), format="event", url=Secret(receiver.url))
        plain = attrs.evolve(hook, name="plain", format="json", url=Secret(f"{receiver.url}&plain"))
        gateway = gateway_to(stand_in(answering("An answer.")).port, log_bodies=FULL, sinks=(hook, plain))
        body = {"model": "m", "messages": [{"role": "user", "content": "A prompt."}]}
        assert (await gateway.ask("POST", CHAT, body=body)).status == 200
        await eventually(reactor, lambda: gateway.clock.advance(0.2) or len(receiver.posted) >= 2)
        by_path = {"plain" in posted.path: posted.body for posted in receiver.posted}
        [event] = json.loads(by_path[False])
        assert event["contents"]["input"] == body["messages"]
        assert event["contents"]["output"]["text"] == "An answer."
        assert b"A prompt." not in by_path[True]
        assert "A prompt." not in gateway.log_text()
        await gateway.stop()
        stored = b"".join(file.read_bytes() for file in gateway.log_file.parent.rglob("*") if file.is_file())
        assert b"A prompt." not in stored
        assert b"An answer." not in stored
    finally:
        await receiver.stop()
