"""What was gathered becomes JSON, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.observability.contents.test_folding import ODD, delta, stream
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.observability.contents.folding import CHUNKS
from twisted_vllm.observability.contents.gathered import Caps, Gathered, Memory
from twisted_vllm.observability.contents.redaction import Redaction, Secrets
from twisted_vllm.observability.contents.rendering import render

EVENTS = ResponseHead(200, b"OK", [(b"content-type", b"text/event-stream")])


def contents(
    body: bytes | HeldBody, answer: bytes = b"", mode: str = "full", most: int = 100_000, allows_no_log: bool = True
) -> Any:
    """Return the contents of a request as JSON; None without any."""
    gathered = Gathered(mode, CHUNKS, Caps(most, 1000), Memory(1_000_000))
    gathered.take_json(body)
    gathered.start(EVENTS)
    gathered.feed(answer)
    return rendered(gathered, allows_no_log)


def rendered(gathered: Gathered, allows_no_log: bool = True) -> Any:
    making = render(gathered, Redaction(), Secrets(str, bool, ("sk-a-key-0123",)), allows_no_log=allows_no_log)
    while True:
        try:
            next(making)
        except StopIteration as end:
            raw: msgspec.Raw | None = end.value
            return None if raw is None else json.loads(bytes(raw))


def held_body(data: bytes) -> HeldBody:
    held = HeldBody(is_json=True)
    held.append(data)
    for _ in held.read(data):
        pass
    for _ in held.check(None):
        pass
    return held


def of(body: object, **options: Any) -> Any:
    return contents(json.dumps(body).encode(), **options)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, [{"role": "user", "content": "a"}]),
        ({"prompt": "a"}, "a"),
        ({"prompt": ["a", "b"]}, ["a", "b"]),
        ({"input": "a", "instructions": "s"}, [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]),
        (
            {"system": "s", "messages": [{"role": "user", "content": "a"}]},
            [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
        ),
        ({"query": "q", "documents": ["d"]}, {"query": "q", "documents": ["d"]}),
        ({"text_1": "a", "text_2": ["b"]}, {"text_1": "a", "text_2": ["b"]}),
        ({"prompt": "a", "messages": []}, {"messages": [], "prompt": "a"}),
        ({"input": list(range(100))}, "[100 numbers, not kept]"),
        ({"temperature": 1}, None),
        ([1, 2], None),
    ],
)
def test_the_prompt_is_found(body: object, expected: object) -> None:
    assert of(body)["input"] == expected


def test_parameters_and_tools_stand_beside_it() -> None:
    found = of({"prompt": "a", "temperature": 0.5, "stop": None, "tools": [{"type": "function"}], "model": "m"})
    assert found["parameters"] == {"temperature": 0.5}
    assert found["tools"] == [{"type": "function"}]


def test_metadata_has_no_text() -> None:
    body = {
        "model": "m",
        "temperature": 0.5,
        "messages": [
            {"role": "system", "content": "HUSH"},
            {"role": "user", "content": [{"type": "text", "text": "HUSH!"}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "HUSH"}}]},
            {"role": "HUSH, not a role", "content": None},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "description": "HUSH"}}, {"type": "mcp"}],
    }
    answer = stream(
        delta(content="HUSH", reasoning="HUSH HUSH"),
        delta(tool_calls=[{"index": 0, "function": {"name": "weather", "arguments": "HUSH"}}]),
        delta(finish_reason="tool_calls"),
        {"error": {"message": "HUSH", "type": "ServerError"}},
    )
    found = of(body, answer=answer, mode="metadata")
    assert "HUSH" not in json.dumps(found)
    assert found == {
        "mode": "metadata",
        "input": [
            {"role": "system", "length": 4},
            {"role": "user", "length": 5, "parts": ["text", "image_url"]},
            {"role": "assistant", "length": 0, "tool_calls": ["weather"]},
            {"role": "", "length": 0},
        ],
        "tools": ["weather", "mcp"],
        "output": {
            "length": 4,
            "reasoning_length": 9,
            "tool_calls": ["weather"],
            "finish_reasons": ["tool_calls"],
            "error": "ServerError",
        },
        "truncated": False,
    }
    assert of({"query": "HUSH", "documents": ["HUSH", "HUSH"]}, mode="metadata")["input"] == {"texts": 3, "length": 12}


def test_a_body_may_ask_that_nothing_is_kept() -> None:
    assert of({"prompt": "a", "no-log": True}) is None
    assert of({"prompt": "a", "no-log": False}) is not None
    assert of({"prompt": "a", "no-log": True}, allows_no_log=False) is not None
    # also behind what is kept
    assert of({"prompt": "a " * 1000, "no-log": True}, most=100) is None
    data = json.dumps({"prompt": "a " * 1000, "no-log": True}).encode()
    assert contents(held_body(data), most=100) is None


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_body_that_streams_may_ask_that_as_well_behind_what_is_kept(size: int) -> None:
    def streamed(body: dict[str, Any]) -> Any:
        gathered = Gathered("full", CHUNKS, Caps(100, 1000), Memory(1_000_000))
        take, data = gathered.watch_json(), json.dumps(body).encode()
        for start in range(0, len(data), size):
            take(data[start : start + size])
        return rendered(gathered)

    assert streamed({"prompt": "a " * 1000, "no-log": True}) is None
    # where what is kept ends
    for length in range(60, 100):
        assert streamed({"prompt": "a" * length, "no-log": True, "n": 1}) is None
    assert streamed({"prompt": "a " * 1000, "n": 1})["truncated"]


@pytest.mark.parametrize("held", [False, True])
def test_a_body_for_which_there_was_no_room_may_ask_that_as_well(held: bool) -> None:
    for asks in (True, False):
        data = json.dumps({"prompt": "a", **({"no-log": True} if asks else {})}).encode()
        memory = Memory(100)
        memory.used = 100
        gathered = Gathered("full", CHUNKS, Caps(1000, 1000), memory)
        gathered.take_json(held_body(data) if held else data)
        # others end before the answer begins
        memory.used = 0
        gathered.start(EVENTS)
        gathered.feed(stream(delta(content="a secret")))
        found = rendered(gathered)
        assert found is None if asks else (found["output"]["text"], found["input"]) == ("a secret", None)


def test_a_prompt_that_was_cut_says_so() -> None:
    found = of({"prompt": "word " * 1000}, most=100)
    assert found["truncated"]
    assert found["input"].startswith("word word")
    assert len(found["input"]) < 100


def test_half_a_pair_of_surrogates_does_not_lose_the_prompt() -> None:
    found = contents(b'{"messages": [{"role": "user", "content": "a \\ud83d b"}]}')
    assert found["input"] == [{"role": "user", "content": "a \ufffd b"}]


@given(st.binary(max_size=200), st.sampled_from(["full", "metadata"]), st.integers(1, 200))
def test_any_bytes_become_json(body: bytes, mode: str, most: int) -> None:
    found = contents(body, body, mode, most)
    assert found["mode"] == mode


@given(
    st.dictionaries(st.sampled_from(["messages", "prompt", "input", "tools", "system", "query", "x"]), ODD),
    st.booleans(),
)
def test_any_body_becomes_json(body: dict[str, Any], full: bool) -> None:
    found = of(body, mode="full" if full else "metadata")
    assert found["truncated"] is False
