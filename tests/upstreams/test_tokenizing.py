"""Servers are asked for the tokens of prompts, and waited for only a little."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock

from tests.proxy.gateway_fakes import server
from tests.upstreams.test_served_models import Answer
from twisted_vllm.upstreams.tokenizing import MAX_ANSWER, MAX_ASKING, MAX_BODY, PATIENCE, PromptTokenizer, question

MESSAGES = [{"role": "user", "content": "Hi \u2603"}]


def body(**members: Any) -> bytes:
    return json.dumps({"model": "callers-name", **members}).encode()


class Tokenizer:
    """A tokenizer whose server answers with `answer`, or never; keeps what it was asked."""

    def __init__(self, answer: Deferred[Any] | None = None, code: int = 200) -> None:
        self.clock = Clock()
        self.sent: list[tuple[bytes, bytes, Any]] = []
        self._answer = answer
        self._code = code
        self.tokenizer = PromptTokenizer(self, self.clock)  # type: ignore[arg-type]  # a client in the place of treq's

    def request(self, method: bytes, url: bytes, *, headers: Any, data: bytes, **more: Any) -> Deferred[Any]:
        self.sent.append((method, url, json.loads(data)))
        assert (b"Content-Length", b"%d" % len(data)) in headers.pairs
        return (self._answer or Deferred()).addCallback(self._coded)

    def _coded(self, answer: Answer) -> Answer:
        answer.code = self._code  # type: ignore[attr-defined]  # of a response
        return answer

    def ask(self, **members: Any) -> list[Any]:
        asked = question(body(**members), "servers-name")
        assert asked is not None
        told: list[Any] = []
        self.tokenizer.ask(server("one:80", "sk-server", b"/base"), asked).addCallback(told.append)
        return told


def test_a_chat_is_asked_for_with_what_its_template_reads() -> None:
    asked = Tokenizer(succeed(Answer(b'{"count": 3, "max_model_len": 10, "tokens": [7, 8, 9]}')))
    tools = [{"type": "function", "function": {"name": "f"}}]
    kwargs = {"enable_thinking": False}
    told = asked.ask(messages=MESSAGES, tools=tools, chat_template_kwargs=kwargs, max_tokens=5, stream=True, user="u")
    assert told == [[7, 8, 9]]
    expected = {"model": "servers-name", "messages": MESSAGES, "tools": tools, "chat_template_kwargs": kwargs}
    assert asked.sent == [(b"POST", b"http://one:80/base/tokenize", expected)]


def test_a_completion_is_asked_for() -> None:
    asked = Tokenizer(succeed(Answer(b'{"tokens": [7]}')))
    assert asked.ask(prompt="Once", add_special_tokens=False) == [[7]]
    assert asked.sent[0][2] == {"model": "servers-name", "prompt": "Once", "add_special_tokens": False}


def test_a_prompt_of_tokens_needs_no_question() -> None:
    asked = Tokenizer()
    assert asked.ask(prompt=[5, 6]) == [[5, 6]]
    assert asked.sent == []


def test_the_salt_of_a_prompt_is_told() -> None:
    asked = question(body(messages=MESSAGES, cache_salt="mine"), "m")
    assert asked is not None
    assert asked.salt == "mine"
    assert b"mine" not in asked.body


@pytest.mark.parametrize(
    "found",
    [
        body(prompt=["two", "prompts"]),
        body(prompt=[[1], [2]]),
        body(prompt=None),
        body(input="of another route"),
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
        body(messages=MESSAGES, cache_salt=7),
        body(messages=MESSAGES, reasoning_effort="high"),
        body(messages=MESSAGES, tool_choice="none"),
        body(prompt="x" * MAX_BODY),
        b"no JSON",
        b"[]",
    ],
)
def test_a_prompt_whose_tokens_cannot_be_told_is_not_asked_for(found: bytes) -> None:
    assert question(found, "m") is None


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b'{"error": {"message": "too long"}}', 400),
        (b"no JSON", 200),
        (b'{"tokens": ["a"]}', 200),
        (b" " * (MAX_ANSWER + 1), 200),
    ],
)
def test_any_other_answer_tells_nothing(answer: bytes, code: int) -> None:
    assert Tokenizer(succeed(Answer(answer)), code).ask(messages=MESSAGES) == [None]


def test_a_server_that_cannot_be_reached_tells_nothing() -> None:
    assert Tokenizer(fail(ConnectionRefusedError())).ask(messages=MESSAGES) == [None]


def test_a_slow_server_is_not_waited_for() -> None:
    asked = Tokenizer()
    told = asked.ask(messages=MESSAGES)
    asked.clock.advance(PATIENCE * 0.9)
    assert told == []
    asked.clock.advance(PATIENCE * 0.2)
    assert told == [None]


def test_no_more_is_asked_while_many_wait() -> None:
    asked = Tokenizer()
    for _ in range(MAX_ASKING):
        assert asked.ask(messages=MESSAGES) == []
    assert asked.ask(messages=MESSAGES) == [None]
    assert len(asked.sent) == MAX_ASKING
    asked.clock.advance(PATIENCE)
    assert asked.ask(messages=MESSAGES) == []
    asked.clock.advance(PATIENCE)
