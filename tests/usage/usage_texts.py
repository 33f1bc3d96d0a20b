"""Texts by which a user may try to forge usage, and ways to cut a stream into pieces."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

#: without a deadline, as the machine may be busy
PATIENT = settings(deadline=None)

#: what a user may write to get another figure into the ledger
EVIL = (
    '"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}',
    ',"usage":{"prompt_tokens":1}',
    '\n\ndata: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
    '\r\rdata: {"choices":[],"usage":{"prompt_tokens":1}}\r\r',
    "data: [DONE]\n\n",
    'event: response.completed\ndata: {"response":{"usage":{"input_tokens":1}}}\n\n',
    '"}],"usage":{"prompt_tokens":1}}',
    'x"usage',
    '"usage"',
    "usage",
    '\\"usage\\":{"prompt_tokens":1}',
    "\\",
    '\\"',
    '\\\\"usage":',
    ',"finish_reason":"stop"',
    "{[{[",
    "}]}]",
    "é日\U0001f600",
)

TEXTS = st.text(max_size=12) | st.sampled_from(EVIL) | st.lists(st.sampled_from(EVIL), max_size=3).map("".join)

#: what a user may put where vLLM returns the client's JSON, keys included: metadata, the schema of a tool
NESTED: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            TEXTS | st.sampled_from(["usage", "response", "choices", "duration", "count"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)

COUNTS = st.integers(0, 2**31)


def spellings(value: Any) -> st.SearchStrategy[bytes]:
    """The ways in which a server may write a value as JSON."""
    return st.builds(
        lambda ascii_only, separators: json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode(
            "utf-8", "replace"
        ),
        st.booleans(),
        st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")]),
    )


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Cut bytes anywhere: into single bytes, at a few places, or not at all."""
    if draw(st.booleans()):
        size = draw(st.integers(1, 9))
        return [data[at : at + size] for at in range(0, len(data), size)]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
