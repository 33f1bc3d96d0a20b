"""Through the gateway, a request gets vLLM's own answer: status, reason, headers in order, and body."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any

import attrs
import pytest

from tests.live.live_gateway import (
    Answer,
    Headers,
    LiveGateway,
    ask,
    bearer,
    connect,
    json_request,
    read,
    send,
    without_added,
)
from tests.live.live_servers import ALIAS, StartGateway, model_list

#: what differs between any two answers
VARIABLE_HEADERS = {"date", "x-request-id"}
#: times, and identifiers that vLLM makes from the request's or draws
TIME = re.compile(rb'("(?:created|created_at|completed_at)":)\d+(?:\.\d+)?')
IDENTIFIER = re.compile(
    rb'"((?:chatcmpl|cmpl|modelperm|resp|msg|rs|score|rerank|classify|pooling|embd)[-_])[0-9a-f-]{8,}"'
)
#: two streams of vLLM differ now and then: where it is slow to write, it puts two tokens in one event
ATTEMPTS = 5

JSON = ("Content-Type", "application/json")
MULTIPART = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nMODEL\r\n--x--\r\n'
FACES = "Grüße, 東京 🙂 \u2028 \x7f"


def normalised(body: bytes) -> bytes:
    return IDENTIFIER.sub(rb'"\1ID"', TIME.sub(rb"\g<1>0", body))


def stable_headers(answer: Answer, body: bytes) -> Headers:
    """Return the headers that two answers must have in common; the length only where the body is the same."""
    drop = VARIABLE_HEADERS if normalised(body) == body else VARIABLE_HEADERS | {"content-length"}
    headers = [(name, value) for name, value in answer.headers if name.lower() not in drop]
    # the framing belongs to the connection: its spelling is each side's own
    return [("transfer-encoding" if name == "Transfer-Encoding" else name, value) for name, value in headers]


def assert_same(through: Answer, directly: Answer) -> None:
    through = without_added(through)
    assert (through.status, through.reason) == (directly.status, directly.reason)
    assert normalised(through.body) == normalised(directly.body)
    assert stable_headers(through, directly.body) == stable_headers(directly, directly.body)
    length = through.header("content-length")
    assert length is None or not through.body or int(length) == len(through.body)


@attrs.frozen
class Case:
    """One request.

    Attributes:
        name: what it is.
        method: its method.
        target: path and query, as vLLM is asked.
        status: what vLLM is known to answer.
        json: the body as JSON; MODEL stands for the model's name.
        body: the body as bytes; here too.
        headers: besides the credential and the framing.
        privileged: whether only the master key may.
    """

    name: str
    method: str
    target: str
    status: int
    json: Any = None
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    privileged: bool = False

    def arguments(self, model: str) -> dict[str, Any]:
        if self.json is None:
            body = None if self.body is None else self.body.replace(b"MODEL", model.encode())
            return {"headers": list(self.headers), "body": body}
        text = json.dumps(self.json, ensure_ascii=False).replace("MODEL", model)
        return {"headers": [JSON, *self.headers], "body": text.encode()}


CHAT = "/v1/chat/completions"
HELLO = {"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
COMPLETION = {"model": "MODEL", "prompt": "Hi", "temperature": 0}
TWO_CHOICES = {**HELLO, "n": 2, "temperature": 1, "seed": 3}
FACES_CHAT = {**HELLO, "messages": [{"role": "user", "content": FACES}]}

CASES = [
    Case("chat", "POST", CHAT, 200, HELLO),
    Case("chat with stream false", "POST", CHAT, 200, {**HELLO, "stream": False}),
    Case("chat with log probabilities", "POST", CHAT, 200, {**HELLO, "logprobs": True, "top_logprobs": 3}),
    Case("chat with a seed", "POST", CHAT, 200, {**HELLO, "temperature": 1, "seed": 7}),
    Case("chat with two choices", "POST", CHAT, 200, TWO_CHOICES),
    Case("unicode", "POST", CHAT, 200, FACES_CHAT),
    Case("completion", "POST", "/v1/completions", 200, COMPLETION),
    Case("echo", "POST", "/v1/completions", 200, {"model": "MODEL", "prompt": FACES, "echo": True, "temperature": 0}),
    Case("tokenize", "POST", "/tokenize", 200, {"model": "MODEL", "prompt": FACES}),
    Case("tokenize a chat", "POST", "/tokenize", 200, {"model": "MODEL", "messages": HELLO["messages"]}),
    Case("detokenize", "POST", "/detokenize", 200, {"model": "MODEL", "tokens": [1, 2, 3, 200]}),
    Case("an ill-typed parameter", "POST", CHAT, 400, {**HELLO, "temperature": "hot"}),
    Case("a parameter out of range", "POST", CHAT, 400, {**HELLO, "temperature": -1}),
    Case("a bad parameter of a stream", "POST", CHAT, 400, {**HELLO, "stream": True, "top_p": 9}),
    Case("no messages", "POST", CHAT, 400, {"model": "MODEL"}),
    Case("more tokens than the model has", "POST", CHAT, 400, {**HELLO, "max_tokens": 10**9}),
    Case(
        "a prompt that is too long",
        "POST",
        CHAT,
        400,
        {"model": "MODEL", "messages": [{"role": "user", "content": "long " * 400_000}]},
    ),
    Case("invalid JSON", "POST", CHAT, 400, body=b'{"model": "x",}', headers=(JSON,)),
    Case("JSON that is not UTF-8", "POST", CHAT, 400, body=b'{"model": "\xff"}', headers=(JSON,)),
    Case("no object", "POST", CHAT, 400, body=b"[1, 2]", headers=(JSON,)),
    Case("an empty body", "POST", CHAT, 400, body=b"", headers=(JSON,)),
    Case("no body", "POST", CHAT, 400),
    Case("another type", "POST", CHAT, 400, body=b"hello", headers=(("Content-Type", "text/plain"),)),
    Case("a form", "POST", CHAT, 400, body=MULTIPART, headers=(("Content-Type", "multipart/form-data; boundary=x"),)),
    Case("models", "GET", "/v1/models", 200, privileged=True),
    Case("a query", "GET", "/v1/models?b=2&a=1&a=%2F+%20&b=&=&x", 200, privileged=True),
    Case("version", "GET", "/version", 200),
    Case("health", "GET", "/health", 200),
    Case("ping", "GET", "/ping", 200),
    Case("load", "GET", "/load", 200),
    Case("openapi", "GET", "/openapi.json", 200),
    Case("docs", "GET", "/docs", 200),
    Case("head", "HEAD", "/v1/models", 405, privileged=True),
    Case("head of health", "HEAD", "/health", 405),
    Case("options", "OPTIONS", CHAT, 405),
    Case(
        "preflight",
        "OPTIONS",
        CHAT,
        400,
        headers=(("Origin", "https://app.example"), ("Access-Control-Request-Method", "POST")),
    ),
    Case("another method", "POST", "/v1/models", 405),
    Case("a method that nobody knows there", "DELETE", CHAT, 405, privileged=True),
    Case("a route that is not there", "GET", "/v1/nothing", 404, privileged=True),
    Case("a privileged route that is off", "POST", "/sleep?level=1", 404, privileged=True),
    Case("an escaped slash", "GET", "/v1%2Fnothing", 404, privileged=True),
    Case("a response that is not there", "GET", "/v1/responses/resp_nothing", 404, privileged=True),
    Case("embeddings of a model without", "POST", "/v1/embeddings", 404, {"model": "MODEL", "input": "x"}),
    Case("messages", "POST", "/v1/messages", 200, HELLO),
    Case("a bad message", "POST", "/v1/messages", 400, {"model": "MODEL", "messages": "x", "max_tokens": 1}),
    Case("count tokens", "POST", "/v1/messages/count_tokens", 200, {"model": "MODEL", "messages": HELLO["messages"]}),
    Case(
        "response",
        "POST",
        "/v1/responses",
        200,
        {"model": "MODEL", "input": "Hi", "max_output_tokens": 8, "temperature": 0},
    ),
]


@pytest.fixture(params=["with keys", "open"])
def through(request: pytest.FixtureRequest) -> LiveGateway:
    """Each way to start the gateway."""
    gateway: LiveGateway = request.getfixturevalue("gateway" if request.param == "with keys" else "open_gateway")
    return gateway


def key_for(gateway: LiveGateway, privileged: bool = False) -> str | None:
    if gateway.master_key is None or privileged:
        return gateway.master_key
    return gateway.make_key()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_an_answer_is_vllm_s_own(case: Case, through: LiveGateway, vllm_url: str, chat_model: str) -> None:
    arguments = case.arguments(chat_model)
    if case.privileged:
        # what acts on a server as a whole, or lists its models, would be for all servers
        arguments["headers"].append(("x-vllm-passthrough-server", vllm_url.partition("//")[2]))
    directly = ask(vllm_url, case.method, case.target, **arguments)
    answer = through.ask(case.method, f"/vllm{case.target}", key_for(through, case.privileged), **arguments)
    if through.master_key is None and any(name == "Origin" for name, _ in case.headers):
        # without keys the gateway keeps web pages of other origins out itself
        assert (answer.status, answer.header("x-vllm-passthrough-error")) == (403, "origin_not_allowed")
        return
    assert_same(answer, directly)
    assert answer.status == case.status


def test_an_unknown_model_is_refused_by_vllm_itself_where_it_is_the_only_server(
    open_gateway: LiveGateway, vllm_url: str
) -> None:
    arguments = json_request({**HELLO, "model": "no-such-model"})
    answer = open_gateway.ask("POST", f"/vllm{CHAT}", **arguments)
    assert_same(answer, ask(vllm_url, "POST", CHAT, **arguments))
    assert answer.status == 404


def test_an_unknown_model_is_refused_by_the_gateway_where_models_are_listed(
    gateway: LiveGateway, virtual_key: str
) -> None:
    answer = gateway.ask("POST", f"/vllm{CHAT}", virtual_key, **json_request({**HELLO, "model": "no-such-model"}))
    assert answer.error_code == (404, "model_not_found")


def test_an_alias_is_answered_as_the_model_that_it_stands_for(
    gateway: LiveGateway, vllm_url: str, chat_model: str, virtual_key: str
) -> None:
    answer = gateway.ask("POST", f"/vllm{CHAT}", virtual_key, **json_request({**HELLO, "model": ALIAS}))
    assert_same(answer, ask(vllm_url, "POST", CHAT, **json_request({**HELLO, "model": chat_model})))
    assert answer.header("x-litellm-model-group") == ALIAS


def test_without_litellm_s_headers_nothing_is_added(
    start_gateway: StartGateway, vllm_url: str, chat_model: str
) -> None:
    config = json.loads(model_list([(chat_model, chat_model, vllm_url)]))
    config["passthrough"]["litellm_headers"] = False
    gateway = start_gateway(json.dumps(config))
    arguments = json_request({**HELLO, "model": chat_model})
    answer, directly = gateway.ask("POST", f"/vllm{CHAT}", **arguments), ask(vllm_url, "POST", CHAT, **arguments)
    assert stable_headers(answer, directly.body) == stable_headers(directly, directly.body)


def test_the_paths_without_v1_answer_the_same(through: LiveGateway, vllm_url: str, chat_model: str) -> None:
    key = key_for(through)
    for path, body in (
        ("/chat/completions", HELLO),
        ("/completions", {"model": "MODEL", "prompt": "a", "temperature": 0}),
    ):
        arguments = json_request({**body, "model": chat_model})
        assert_same(
            through.ask("POST", f"/vllm{path}", key, **arguments), ask(vllm_url, "POST", f"/v1{path}", **arguments)
        )
    # of a list of models, the gateway's own answer has those of all servers
    chosen = [("x-vllm-passthrough-server", vllm_url.partition("//")[2])] if through.master_key else []
    answer = through.ask("GET", "/vllm/models", key_for(through, privileged=True), headers=chosen)
    assert_same(answer, ask(vllm_url, "GET", "/v1/models"))


def test_a_request_id_of_the_client_s_own_gives_the_same_bytes(
    through: LiveGateway, vllm_url: str, chat_model: str
) -> None:
    arguments = json_request({**HELLO, "model": chat_model})
    arguments["headers"].append(("X-Request-Id", "made-by-the-client-1"))
    answer = through.ask("POST", f"/vllm{CHAT}", key_for(through), **arguments)
    directly = ask(vllm_url, "POST", CHAT, **arguments)
    assert b'"chatcmpl-made-by-the-client-1"' in answer.body
    assert TIME.sub(b"", answer.body) == TIME.sub(b"", directly.body)
    assert answer.header("x-request-id") == "made-by-the-client-1"


def test_a_body_in_chunks_is_understood(through: LiveGateway, vllm_url: str, chat_model: str) -> None:
    whole = json.dumps({**FACES_CHAT, "model": chat_model}, ensure_ascii=False).encode()
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    answer = through.ask("POST", f"/vllm{CHAT}", key_for(through), headers=[JSON], body=iter(pieces))
    assert_same(answer, ask(vllm_url, "POST", CHAT, headers=[JSON], body=whole))
    assert answer.status == 200


def test_a_large_body_arrives_whole(through: LiveGateway, vllm_url: str, chat_model: str) -> None:
    padding = " " * 20_000_000
    body = json.dumps({**HELLO, "model": chat_model}).encode() + padding.encode()
    answer = through.ask("POST", f"/vllm{CHAT}", key_for(through), [JSON], body)
    assert_same(answer, ask(vllm_url, "POST", CHAT, [JSON], body))
    assert answer.status == 200


def test_the_metrics_have_vllm_s_head(through: LiveGateway, vllm_url: str) -> None:
    answer, directly = through.ask("GET", "/vllm/metrics", key_for(through)), ask(vllm_url, "GET", "/metrics")
    answer = without_added(answer)
    drop = VARIABLE_HEADERS | {"content-length"}
    assert [pair for pair in answer.headers if pair[0] not in drop] == [
        pair for pair in directly.headers if pair[0] not in drop
    ]
    assert (answer.status, answer.header("content-length")) == (200, str(len(answer.body)))


# scores

SCORING = [
    Case("score", "POST", "/score", 200, {"model": "MODEL", "text_1": "What is Paris?", "text_2": ["A city.", "x"]}),
    Case("score below v1", "POST", "/v1/score", 200, {"model": "MODEL", "text_1": "a", "text_2": "b"}),
    Case("rerank", "POST", "/rerank", 200, {"model": "MODEL", "query": "a", "documents": ["b", "c"]}),
    Case("rerank below v2", "POST", "/v2/rerank", 200, {"model": "MODEL", "query": "a", "documents": ["b", "c"]}),
    Case("classify", "POST", "/classify", 200, {"model": "MODEL", "input": [FACES]}),
    Case("pooling", "POST", "/pooling", 200, {"model": "MODEL", "input": "a"}),
    Case("a score of nothing", "POST", "/score", 400, {"model": "MODEL"}),
]


@pytest.mark.parametrize("case", SCORING, ids=lambda case: case.name.replace(" ", "-"))
def test_a_score_is_vllm_s_own(
    case: Case, gateway: LiveGateway, score_url: str, score_model: str, virtual_key: str
) -> None:
    arguments = case.arguments(score_model)
    directly = ask(score_url, case.method, case.target, **arguments)
    answer = gateway.ask(case.method, f"/vllm{case.target}", virtual_key, **arguments)
    assert_same(answer, directly)
    assert answer.status == case.status


# streams

STREAMS = [
    Case("chat", "POST", CHAT, 200, {**HELLO, "stream": True}),
    Case("chat with usage", "POST", CHAT, 200, {**HELLO, "stream": True, "stream_options": {"include_usage": True}}),
    Case("chat with choices", "POST", CHAT, 200, {**TWO_CHOICES, "stream": True, "max_tokens": 1}),
    Case("chat with probabilities", "POST", CHAT, 200, {**HELLO, "stream": True, "logprobs": True}),
    Case("completion", "POST", "/v1/completions", 200, {**COMPLETION, "stream": True}),
    Case("messages", "POST", "/v1/messages", 200, {**HELLO, "stream": True}),
    Case(
        "responses",
        "POST",
        "/v1/responses",
        200,
        {"model": "MODEL", "input": "Hi", "temperature": 0, "max_output_tokens": 8, "stream": True},
    ),
]


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case.name.replace(" ", "-"))
def test_a_stream_has_the_same_events(case: Case, through: LiveGateway, vllm_url: str, chat_model: str) -> None:
    key, arguments = key_for(through), case.arguments(chat_model)
    for _ in range(ATTEMPTS):
        directly = ask(vllm_url, case.method, case.target, **arguments)
        answer = through.ask(case.method, f"/vllm{case.target}", key, **arguments)
        if normalised(answer.body) == normalised(directly.body):
            break
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.body.count(b"\n\n") > 1
    assert_same(answer, directly)


def test_a_stream_comes_while_vllm_writes_it(through: LiveGateway, chat_model: str) -> None:
    arguments = json_request({**HELLO, "model": chat_model, "stream": True, "max_tokens": 1900, "ignore_eos": True})
    headers = bearer(key_for(through)) + arguments["headers"]

    def share_of_the_time_until_the_first_event() -> float:
        connection = connect(through.url)
        began = monotonic()
        try:
            response = send(connection, "POST", f"/vllm{CHAT}", headers, arguments["body"])
            assert response.readline().startswith(b"data: {")
            first_after = monotonic() - began
            assert response.read().endswith(b"data: [DONE]\n\n")
        finally:
            connection.close()
        return first_after / (monotonic() - began)

    # gathered on the way, the first event comes with the last, always; on a busy machine it does so now and then,
    # which may stop this process for a second
    assert any(share_of_the_time_until_the_first_event() < 0.5 for _ in range(ATTEMPTS))


# connections


def test_a_connection_that_vllm_closes_when_idle_costs_no_request(through: LiveGateway, chat_model: str) -> None:
    key = key_for(through)
    arguments = json_request({**HELLO, "model": chat_model, "max_tokens": 1})

    def ask_pause_ask(pause: float) -> list[int]:
        connection = connect(through.url)
        try:
            statuses = []
            for seconds in (0.0, pause):
                sleep(seconds)
                answer = read(
                    send(connection, "POST", f"/vllm{CHAT}", bearer(key) + arguments["headers"], arguments["body"])
                )
                statuses.append(answer.status)
            return statuses
        finally:
            connection.close()

    # vLLM's limit is 5 s: just before, at, and just after it
    pauses = [4.8, 4.9, 4.95, 4.98, 4.99, 5.0, 5.005, 5.01, 5.02, 5.05, 5.1, 5.3]
    with ThreadPoolExecutor(len(pauses)) as pool:
        assert list(pool.map(ask_pause_ask, pauses)) == [[200, 200]] * len(pauses)


def test_answers_of_requests_at_the_same_time_are_not_mixed_up(through: LiveGateway, chat_model: str) -> None:
    key = key_for(through)

    def ask_for(number: int) -> bool:
        stream = number % 2 == 0
        arguments = json_request({**HELLO, "model": chat_model, "max_tokens": 16, "stream": stream})
        identifier = f"at-the-same-time-{number}"
        arguments["headers"].append(("X-Request-Id", identifier))
        answer = through.ask("POST", f"/vllm{CHAT}", key, **arguments)
        found = set(re.findall(rb'"id":"chatcmpl-([^"]*)"', answer.body))
        return answer.status == 200 and found == {identifier.encode()} and answer.header("x-request-id") == identifier

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask_for, range(96)))
