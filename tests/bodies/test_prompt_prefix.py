"""The prefix of a prompt: equal beginnings have equal hashes, whatever follows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.bodies.prompt_prefix import BLOCK, MOST, MOST_BLOCKS, prompt_prefix

texts = st.one_of(
    st.text(max_size=20), st.integers(0, 3_000).map(lambda size: "A word, and { others }. " * (size // 24))
)
roles = st.sampled_from(("user", "tool"))
messages = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, roles, texts), min_size=1, max_size=8
)
compact = st.booleans().map(lambda is_compact: (",", ":") if is_compact else None)


def body_of(separators: tuple[str, str] | None = None, **members: Any) -> bytes:
    return json.dumps(members, separators=separators).encode()


def held(body: bytes, piece: int = 1_000) -> HeldBody:
    found = HeldBody(is_json=True)
    for offset in range(0, len(body), piece):
        found.append(body[offset : offset + piece])
        for _ in found.read(body[offset : offset + piece]):
            pass
    for _ in found.check(None):
        pass
    return found


def common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    return next(
        (index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )


@given(messages, st.integers(1, 8), compact, st.sampled_from(("messages", "input")))
def test_the_next_turn_has_all_blocks_of_the_turn_before(
    all_said: list[dict[str, str]], turns: int, separators: tuple[str, str] | None, key: str
) -> None:
    said, more = all_said[:turns], all_said[turns:]
    before = prompt_prefix(body_of(separators, model="m", **{key: said}, max_tokens=5))
    after = prompt_prefix(body_of(separators, temperature=0.5, **{key: said + more}, model="m"))
    assert after[: len(before)] == before


@given(st.text('ab {}[],"\\', max_size=3_000), st.text('ab {}[],"\\', max_size=300))
def test_a_longer_prompt_has_all_blocks_of_the_shorter(text: str, more: str) -> None:
    before = prompt_prefix(body_of(model="m", prompt=text))
    assert prompt_prefix(body_of(model="m", prompt=text + more))[: len(before)] == before


@given(st.lists(st.integers(0, 200_000), max_size=900), st.lists(st.integers(0, 200_000), min_size=1, max_size=90))
def test_a_longer_list_of_tokens_has_all_blocks_of_the_shorter(tokens: list[int], more: list[int]) -> None:
    before = prompt_prefix(body_of(model="m", prompt=tokens))
    assert prompt_prefix(body_of(model="m", prompt=tokens + more))[: len(before)] == before


def test_a_conversation_is_told_from_others_by_its_first_message_however_short_its_blocks_would_be() -> None:
    def ask(*contents: str) -> tuple[int, ...]:
        said = [{"role": "system", "content": "Be brief. " * 40}]
        said += [{"role": "user", "content": content} for content in contents]
        return prompt_prefix(body_of(model="m", messages=said))

    first, second = ask("Hello"), ask("Hi")
    follow_up = ask("Hello", "How are you?")
    assert common(first, second) == len(first) - 1
    assert common(first, follow_up) == len(first) > common(second, follow_up)


def test_a_difference_changes_all_hashes_after_it_and_none_before() -> None:
    first = prompt_prefix(body_of(model="m", prompt="x" * 20 * BLOCK))
    second = prompt_prefix(body_of(model="m", prompt="x" * 10 * BLOCK + "y" + "x" * 10 * BLOCK))
    assert common(first, second) == 10
    assert not set(first[10:]) & set(second[10:])


@pytest.mark.parametrize(
    "changed",
    [
        {"cache_salt": "theirs"},
        {"tools": [{"type": "function"}]},
        {"system": "another"},
        {"instructions": "another"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_what_stands_before_the_messages_changes_all_hashes(changed: dict[str, Any]) -> None:
    said = [{"role": "user", "content": "a question " * 100}]
    first = prompt_prefix(body_of(model="m", messages=said))
    second = prompt_prefix(body_of(model="m", messages=said, **changed))
    assert first and second
    assert not set(first) & set(second)


def test_the_model_the_key_s_salt_and_the_client_s_salt_each_separate_prompts() -> None:
    body = body_of(messages=[{"role": "user", "content": "a question " * 100}])
    salted = body_of(messages=[{"role": "user", "content": "a question " * 100}], cache_salt="a")
    found = [
        prompt_prefix(body),
        prompt_prefix(body, model="lora"),
        prompt_prefix(body, salt="a"),
        prompt_prefix(salted),
        prompt_prefix(salted, salt="a"),
    ]
    assert len({each[0] for each in found}) == 5


def test_the_order_of_the_members_does_not_matter_but_that_of_rendering_does() -> None:
    tools, said = [{"type": "function", "name": "f" * 300}], [{"role": "user", "content": "q" * 600}]
    assert prompt_prefix(body_of(tools=tools, messages=said)) == prompt_prefix(body_of(messages=said, tools=tools))
    other = [{"role": "user", "content": "z" * 600}]
    assert common(
        prompt_prefix(body_of(messages=said, tools=tools)), prompt_prefix(body_of(messages=other, tools=tools))
    )


@given(messages, compact, st.integers(1, 5_000))
def test_a_held_body_has_the_hashes_of_the_same_bytes(
    said: list[dict[str, str]], separators: tuple[str, str] | None, piece: int
) -> None:
    body = body_of(separators, cache_salt="s", messages=said, tools=[{"name": "n" * 300}], model="m")
    assert prompt_prefix(held(body, piece), model="m", salt="t") == prompt_prefix(body, model="m", salt="t")


def test_a_large_body_costs_a_bounded_number_of_blocks() -> None:
    many = body_of(messages=[{"role": "user", "content": "Hi"}] * (MOST // 20))
    assert 1_000 < len(prompt_prefix(many)) <= MOST_BLOCKS
    assert len(prompt_prefix(body_of(messages=["role"] * (MOST // 4)))) <= MOST_BLOCKS
    for content in ("x" * 4 * MOST, "{" * MOST, "{}," * MOST, "}" * 2 * MOST, '{"a":1},' * MOST):
        body = body_of(messages=[{"role": "user", "content": content}])
        found = prompt_prefix(body)
        assert 100 < len(found) <= MOST_BLOCKS
        assert prompt_prefix(held(body, 100_000)) == found


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"messages": null}',
        b'{"messages": []}',
        b'{"messages": [}',
        b'{"prompt": 5}',
        b'{"prompt": "short"}',
        b'{"prompt": ""}',
        b'{"prompt":"\xff\xfe"}',
        b'\xff\xfe{\x00"\x00',
        b'{"messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"x",
        b"x" * 10_000,
    ],
)
def test_a_body_without_a_prompt_or_none_at_all_has_no_prefix(body: bytes) -> None:
    assert prompt_prefix(body) == ()
    assert prompt_prefix(held(body)) == ()


@given(st.binary(max_size=300))
def test_any_bytes_can_be_asked_for_their_prefix(data: bytes) -> None:
    for body in (
        data,
        b'{"messages":' + data,
        b'{"prompt":"%b"}' % data,
        b'{"cache_salt":%b,"input":"%b"}' % (data, data),
    ):
        assert len(prompt_prefix(body)) <= 2


def test_a_body_that_is_no_json_has_no_prefix() -> None:
    form = HeldBody(is_json=False)
    form.append(b"--boundary")
    assert prompt_prefix(form) == ()
