"""How much text a stream of chunks has, measured by its size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from twisted_vllm.usage.readers.streams import ChunkStream


def event(**choice: Any) -> bytes:
    head = {"id": "x", "model": "m"}
    return (
        b"data: " + json.dumps({**head, "choices": [{"index": 0, **choice}]}, separators=(",", ":")).encode() + b"\n\n"
    )


def size_of(*events: bytes, chat: bool = True) -> int:
    reader = ChunkStream(chat=chat)
    for each in events:
        reader.feed(each)
    return reader.text_size(len(b"".join(events)))


ROLE = event(delta={"role": "assistant", "content": ""})


def test_the_text_of_a_chat_is_measured_without_the_chunk_of_the_role() -> None:
    words = [event(delta={"content": text}) for text in ("one", " two three", "", " four")]
    assert size_of(ROLE, *words) == len("one two three four")


def test_reasoning_is_text_too() -> None:
    assert size_of(ROLE, event(delta={"reasoning": "well"}), event(delta={"reasoning": "yes"})) == len("wellyes")


def test_the_text_of_a_completion_is_measured() -> None:
    assert size_of(event(text="one", logprobs=None), event(text="two", logprobs=None), chat=False) == len("onetwo")


@pytest.mark.parametrize(
    "events",
    [
        (ROLE,),
        (ROLE, event(delta={"content": "a"}, logprobs={"content": [{"token": "a"}]})),
        (
            ROLE,
            event(delta={"content": "a"}),
            b'data: {"error":{"message":"a long text that is none of the model"}}\n\n',
        ),
        (b"data: {broken\n\n",),
    ],
    ids=["no content", "with logprobs", "an error", "no JSON"],
)
def test_what_cannot_be_measured_is_none(events: tuple[bytes, ...]) -> None:
    assert size_of(*events) == 0
