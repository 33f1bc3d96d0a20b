"""JSON texts of any spelling, and bodies that arrive in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.field_policy.policy import FieldPolicy

_SPACE = st.text(" \t\r\n", max_size=2)
_LITERALS = (
    "null",
    "true",
    "false",
    "NaN",
    "Infinity",
    "-Infinity",
    "0",
    "-0",
    "17",
    "-3.5",
    "2e3",
    "1E-400",
    "9" * 40,
)
#: what texts are made of: escapes, halves of surrogates, characters of each length, and what could end a text
_CHARACTERS = (
    *(
        "a",
        " ",
        "ü",
        "日",
        "😀",
        "\\n",
        '\\"',
        "\\\\",
        "\\/",
        "\\u0061",
        "\\u00e9",
        "\\ud83d\\ude00",
        "\\ud800",
        "\\uDFFF",
    ),
    *("{", "}", "[", "]", ",", ":", ";base64,", "x" * 60, "y" * 140, "z" * 1_100, "\\u65e5" * 40),
)
_texts = st.lists(st.sampled_from(_CHARACTERS), max_size=12).map(lambda parts: '"' + "".join(parts) + '"')
_keys = st.sampled_from(
    (
        '"a"',
        '"b"',
        '"\\u0061"',
        '""',
        '"model"',
        '"mod\\u0065l"',
        '"user"',
        '"k\\n"',
        '"ü"',
        '"\\ud800"',
        '"' + "k" * 99 + '"',
    )
)
_numbers = st.lists(st.sampled_from(_LITERALS[6:]), min_size=1, max_size=90).map(
    lambda them: "[" + ", ".join(them) + "]"
)


@st.composite
def _lists(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    items = [f"{draw(_SPACE)}{each}{draw(_SPACE)}" for each in draw(st.lists(values, max_size=4))]
    return "[" + (",".join(items) or draw(_SPACE)) + "]"


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    """The text of an object; its keys may be repeated, and escaped."""
    members = [
        f"{draw(_SPACE)}{key}{draw(_SPACE)}:{draw(_SPACE)}{value}{draw(_SPACE)}"
        for key, value in draw(st.lists(st.tuples(_keys, values), max_size=5))
    ]
    return "{" + (",".join(members) or draw(_SPACE)) + "}"


#: the texts of values
json_values = st.recursive(
    st.one_of(st.sampled_from(_LITERALS), _texts, _numbers),
    lambda values: st.one_of(_lists(values), objects(values)),
    max_leaves=12,
)
#: the texts of bodies
json_bodies = st.tuples(_SPACE, objects(json_values), _SPACE).map("".join)


@st.composite
def pieces_of(draw: st.DrawFn, body: bytes) -> list[bytes]:
    """A body cut anywhere; some pieces are empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=6)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def held(pieces: Iterable[bytes], policy: FieldPolicy | None = None) -> HeldBody:
    """Return a body that has arrived in these pieces, read and checked."""
    body = HeldBody(is_json=True)
    for piece in pieces:
        body.append(piece)
        for _ in body.read(piece):
            pass
    for _ in body.check(policy):
        pass
    return body
