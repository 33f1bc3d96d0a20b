"""Where URLs stand in a body: what vLLM fetches is found, and what it does not fetch is left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.field_policy import media
from twisted_vllm.field_policy.media import Repeated, all_allowed, may_hold_urls, pairs, urls_in
from twisted_vllm.field_policy.media_hosts import MediaRules

BAD = "http://169.254.169.254/latest"
GOOD = "https://example.com/a.png"
RULES = MediaRules()


def urls_of(body: bytes) -> list[str]:
    decoded = json.loads(body, object_pairs_hook=pairs)
    return [url for _, url in urls_in(decoded.items())]


def part(kind: str, url: Any) -> dict[str, Any]:
    return {"type": kind, kind: url}


#: bodies of each route in which vLLM fetches the URL
FETCHED: dict[str, Any] = {
    "chat": {"messages": [{"role": "user", "content": [part("image_url", {"url": BAD})]}]},
    "chat, simple": {"messages": [{"role": "user", "content": [{"image_url": BAD}]}]},
    "chat, with a uuid": {"messages": [{"content": [{"type": "text", "uuid": "1", "audio_url": {"url": BAD}}]}]},
    "an image in Python": {"messages": [{"content": [{"type": "text", "uuid": "1", "image_pil": BAD}]}]},
    "audio": {"messages": [{"role": "user", "content": [part("audio_url", {"url": BAD})]}]},
    "video": {"messages": [{"role": "user", "content": [part("video_url", {"url": BAD})]}]},
    "batch": {"messages": [[{"role": "user", "content": [part("image_url", {"url": BAD})]}]]},
    "responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": BAD}]}]},
    "tool output": {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": BAD}]}]},
    "messages": {"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": BAD}}]}]},
    "tool result": {
        "messages": [
            {
                "content": [
                    {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": BAD}}]}
                ]
            }
        ]
    },
    "score": {"text_1": {"content": [part("image_url", {"url": BAD})]}, "text_2": "a"},
    "rerank": {"query": "a", "documents": {"content": [part("image_url", {"url": BAD})]}},
    "pooling": {"input": [{"role": "user", "content": [part("image_url", {"url": BAD})]}]},
    "embed": {"inputs": [{"content": [part("image_url", {"url": BAD})]}]},
    "embed, images": {"images": ["data:,", BAD]},
    "decisions": {"state": "s", "audio": [BAD]},
    "generate": {"content_parts": [{"type": "image_url", "url": BAD}]},
}


@pytest.mark.parametrize("name", FETCHED)
def test_every_url_that_vllm_fetches_is_found(name: str) -> None:
    body = json.dumps(FETCHED[name]).encode()
    assert BAD in urls_of(body)
    if "images" not in name and name != "decisions":
        assert may_hold_urls(body)
        assert not all_allowed(body, RULES)
        assert all_allowed(body.replace(BAD.encode(), GOOD.encode()), RULES) is (
            "Python" not in name and "uuid" not in name
        )


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": f"look at {BAD}"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": json.dumps({"url": BAD})}]}]},
        {"messages": [{"content": [{"type": "tool_use", "name": "fetch", "input": {"url": BAD, "image_url": BAD}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": json.dumps({"url": BAD})}}]}]},
        {"tools": [{"function": {"parameters": {"properties": {"image_url": {"default": BAD}}}}}]},
        {"metadata": {"image_url": BAD}},
        {"documents": [{"title": "a", "url": BAD}]},
        {"audio": {"voice": BAD}},
        {"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": BAD, "format": "wav"}}]}]},
    ],
)
def test_urls_that_nobody_fetches_are_left_alone(body: Any) -> None:
    assert BAD not in urls_of(json.dumps(body).encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"messages":[{"content":[{"image_url":"%s","image_url":"%s"}]}]}',
        '{"messages":[{"content":[{"image_url":{"url":"%s"},"image_url":{"url":"%s"}}]}]}',
        '{"messages":[{"content":[{"image_url":{"url":"%s","url":"%s"}}]}]}',
        '{"messages":[{"content":[{"type":"image_url","url":"%s","type":"text","url":"%s"}]}]}',
        '{"messages":[{"content":"%s","content":[{"image_url":"%s"}]}]}',
    ],
)
@pytest.mark.parametrize("order", [(BAD, GOOD), (GOOD, BAD)])
def test_each_of_several_equal_keys_counts(text: str, order: tuple[str, str]) -> None:
    body = (text % order).encode()
    if '"content":"' not in text or order[1] == BAD:
        assert BAD in urls_of(body)
        assert not all_allowed(body, RULES)


def test_the_members_of_a_large_object_with_a_repeated_key_are_each_looked_at_once() -> None:
    compared = 0

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    members: list[tuple[str, Any]] = [(Name(f"k{number}"), number) for number in range(3000)]
    found = pairs([*members, (Name("k7"), 8)])
    assert found["k7"] == [7, 8]
    assert isinstance(found["k7"], Repeated)
    assert found["k8"] == 8
    assert compared < 60_000


@pytest.mark.parametrize(
    "value", [r"http:\/\/127.0.0.1\/", r"\u0068ttp://127.0.0.1/", r"http://127.0.0.1/\"", r"file:\/\/\/x"]
)
def test_escapes_in_a_url_hide_nothing(value: str) -> None:
    assert not all_allowed(b'{"messages":[{"content":[{"image_url":{"url":"%b"}}]}]}' % value.encode(), RULES)


def test_the_content_of_data_urls_is_skipped_to_its_very_end() -> None:
    for filling in ("A" * 100_000, r"a\"b", r"\\", r"\\\"", r"image\/png;base64,AA\/A"):
        for after, allowed in ((GOOD, True), (BAD, False)):
            text = '{"messages":[{"content":[{"image_url":{"url":"data:%s"}},{"image_url":{"url":"%s"}}]}]}'
            body = (text % (filling, after)).encode()
            json.loads(body)
            assert all_allowed(body, RULES) is allowed, filling


def test_a_run_of_backslashes_is_read_whole() -> None:
    body = b'{"messages":[{"content":[{"image_url":"data:%b"}]}]}' % (b"\\\\" * 100)
    assert not all_allowed(body, RULES)
    assert urls_of(body) == ["data:" + "\\" * 100]


def test_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_VALUES", 10)
    assert list(urls_in([("messages", [[], 1, 2] * 9)])) == []
    with pytest.raises(ValueError, match="too many"):
        list(urls_in([("messages", [{}] * 10)]))


def test_a_body_with_very_many_urls_is_read_whole() -> None:
    for body in (b'{"a":[%b1]}' % (b'{"url":"http://a.com"},' * 5000), b'{"a":{"url":"%b"}}' % (b'\\"' * 100)):
        json.loads(body)
        assert not all_allowed(body, RULES)


def test_data_urls_may_be_forbidden() -> None:
    assert not all_allowed(b'{"a":{"url": "DATA:,x"}}', MediaRules(schemes=("https",)))


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([BAD, GOOD, "data:,x", "url", 'url":"', ""])
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["image_url", "audio_url", "url", "source", "content", "type", "messages", "text", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "text_1", "tools"]), _JSON), st.booleans(), st.booleans())
def test_what_the_quick_look_allows_has_no_url_that_is_refused(body: Any, spaces: bool, ascii_only: bool) -> None:
    separators = (" , ", " :\n ") if spaces else (",", ":")
    text = json.dumps(body, separators=separators, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if not may_hold_urls(text) or all_allowed(text, RULES):
        assert [url for url in urls_of(text) if RULES.refusal(url) is not None] == []
