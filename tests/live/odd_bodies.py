"""Odd bodies for vLLM's inference routes: valid ones, changed in the ways in which two readers may disagree."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import TypeVar

import attrs

from tests.live.odd_values import ANY, KINDS

_T = TypeVar("_T")

JSON_TYPE = "application/json"
_USER = '{"role":"user","content":"hi"}'
#: the fields of all routes
FIELDS = tuple(KINDS)


@attrs.frozen
class _Family:
    """Valid bodies of a route, and the fields that matter there."""

    valid: tuple[str, ...]
    fields: tuple[str, ...] = ("model",)


_SAMPLED = (
    "n",
    "stream",
    "stream_options",
    "use_beam_search",
    "ignore_eos",
    "best_of",
    "min_tokens",
    "priority",
    "cache_salt",
)
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_CHAT = _Family(
    (f'{{"model":"m","messages":[{_USER}]}}', f'{{"model":"m","messages":[{_USER}],"max_tokens":9,"stream":true}}'),
    ("model", "messages", "prompt", *_LIMITS, *_SAMPLED),
)
_BATCH = _Family(
    (f'{{"model":"m","messages":[[{_USER}],[{_USER}]],"max_tokens":9}}', f'{{"model":"m","messages":[[{_USER}]]}}'),
    ("model", "messages", "prompt", *_LIMITS, *_SAMPLED),
)
_COMPLETIONS = _Family(
    (
        '{"model":"m","prompt":"hi"}',
        '{"model":"m","prompt":["hi","ho"],"max_tokens":9}',
        '{"model":"m","prompt":[[1],[2]],"n":2,"stream":true}',
    ),
    ("model", "prompt", "prompt_embeds", "messages", "echo", *_LIMITS, *_SAMPLED),
)
_POOLING = _Family(
    ('{"model":"m","input":["hi","ho"]}', f'{{"model":"m","messages":[{_USER}]}}'),
    ("model", "input", "messages", "user", "priority", "cache_salt", "padding"),
)
_SCORE = _Family(
    (
        '{"model":"m","text_1":"a","text_2":["b","c"]}',
        '{"model":"m","queries":"a","documents":["b","c"]}',
        '{"model":"m","queries":["a"],"items":["b","c"]}',
        '{"model":"m","data_1":["a","b"],"data_2":["b","c"]}',
    ),
    (
        "model",
        "text_1",
        "text_2",
        "queries",
        "documents",
        "items",
        "data_1",
        "data_2",
        "instruction",
        "padding",
        "user",
    ),
)
_RERANK = _Family(
    ('{"model":"m","query":"a","documents":["b","c"]}',),
    ("model", "query", "documents", "top_n", "instruction", "user"),
)
FAMILIES: dict[str, _Family] = {
    "/v1/chat/completions": _CHAT,
    "/v1/chat/completions/batch": _BATCH,
    "/v1/completions": _COMPLETIONS,
    "/v1/responses": _Family(
        ('{"model":"m","input":"hi"}', f'{{"model":"m","input":[{_USER}],"max_output_tokens":9,"stream":true}}'),
        (
            *("model", "input", "previous_response_id", "background", "store", "stream", "priority", "user"),
            *("n", "request_id", "metadata", "prompt", "cache_salt", "max_tool_calls", *_LIMITS),
        ),
    ),
    "/v1/messages": _Family(
        (
            f'{{"model":"m","messages":[{_USER}],"max_tokens":9}}',
            f'{{"model":"m","messages":[{_USER}],"max_tokens":9,"stream":true}}',
        ),
        ("model", "messages", "stream", "n", "metadata", "user", "cache_salt", "priority", *_LIMITS),
    ),
    "/v1/messages/count_tokens": _Family(
        (f'{{"model":"m","messages":[{_USER}]}}',), ("model", "messages", "max_tokens")
    ),
    "/cohere/v2/chat": _Family(
        (f'{{"model":"m","messages":[{_USER}]}}', f'{{"model":"m","messages":[{_USER}],"max_tokens":9,"stream":true}}'),
        ("model", "messages", "stream", "n", "priority", "cache_salt", *_LIMITS),
    ),
    "/inference/v1/generate": _Family(
        (
            '{"model":"m","token_ids":[1,2],"sampling_params":{"max_tokens":9}}',
            '{"model":"m","token_ids":[1,2],"sampling_params":{"n":2},"stream":true}',
        ),
        ("model", "token_ids", "sampling_params", "sampling_params", "sampling_params", "n", "max_tokens", *_SAMPLED),
    ),
    "/generative_scoring": _Family(
        ('{"model":"m","query":"a","items":["b","c"],"label_token_ids":[1]}',),
        ("model", "query", "items", "priority", "cache_salt", "n", "max_tokens"),
    ),
    "/v1/systemone": _Family(
        ('{"model":"m","state":"a","questions":{"q":{"type":"noul"},"r":{"type":"noul"}}}',),
        ("model", "state", "questions", "instructions", "images", "priority", "cache_salt", "n", "max_tokens"),
    ),
    "/v1/embeddings": _POOLING,
    "/classify": _POOLING,
    "/pooling": _POOLING,
    "/v2/embed": _Family(
        ('{"model":"m","texts":["a","b"]}',), ("model", "texts", "images", "max_tokens", "priority", "cache_salt")
    ),
    "/score": _SCORE,
    "/v1/score": _SCORE,
    "/rerank": _RERANK,
    "/v1/rerank": _RERANK,
    "/v2/rerank": _RERANK,
    "/tokenize": _Family(
        ('{"model":"m","prompt":"hi"}', f'{{"model":"m","messages":[{_USER}]}}'), ("model", "prompt", "messages")
    ),
    "/detokenize": _Family(('{"model":"m","tokens":[1,2]}',), ("model", "tokens")),
    "/invocations": _Family(
        (*_CHAT.valid, *_COMPLETIONS.valid, *_POOLING.valid, *_SCORE.valid, *_RERANK.valid),
        ("model", "messages", "prompt", "input", "documents", "echo", *_LIMITS, *_SAMPLED),
    ),
}
#: the kinds of server on which the reading of ``/invocations`` depends
SERVERS = ("generate", "generate", "embed", "classify", "score")


@attrs.define
class Draft:
    """A JSON body in pieces, each of which can be left out.

    Attributes:
        members: the object's members, each as JSON.
        wrap: what is done to the text and the bytes around them.
    """

    members: list[tuple[str, str]]
    wrap: list[Callable[[bytes], bytes]]

    def smaller(self) -> list[Draft]:
        """Return the body without each of its pieces, or with one of its keys written plainly."""
        found = [Draft(without(self.members, at), self.wrap) for at in range(len(self.members))]
        found += [Draft(self.members, without(self.wrap, at)) for at in range(len(self.wrap))]
        for at, (key, value) in enumerate(self.members):
            plain = (json.dumps(json.loads(key)) if is_json(key) else key, value.strip())
            if plain != (key, value):
                found.append(Draft([*self.members[:at], plain, *self.members[at + 1 :]], self.wrap))
        return found

    def encode(self) -> bytes:
        """Return the body."""
        body = ("{" + ",".join(f"{key}:{value}" for key, value in self.members) + "}").encode("utf-8", "surrogatepass")
        for change in self.wrap:
            body = change(body)
        return body


def without(pieces: list[_T], at: int) -> list[_T]:
    """Return a list without one of its elements."""
    return pieces[:at] + pieces[at + 1 :]


def is_json(text: str) -> bool:
    """Tell whether a text is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def odd_draft(route: str, random: Random) -> Draft:
    """Make an odd JSON body for a route."""
    family = FAMILIES[route]
    members = [
        (json.dumps(key), json.dumps(value, separators=(",", ":")))
        for key, value in json.loads(random.choice(family.valid)).items()
    ]
    draft = Draft(members, [])
    for _ in range(random.choice((0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 6))):
        random.choice(_CHANGES)(draft, family, random)
    if random.random() < 0.12:
        draft.wrap.append(random.choice(_WRAPS)(random))
    return draft


def _field(family: _Family, random: Random) -> str:
    return random.choice(family.fields if random.random() < 0.85 else FIELDS)


def _value(field: str, random: Random) -> str:
    return random.choice(KINDS.get(field, ANY) if random.random() < 0.93 else ANY)


def _key(field: str, random: Random) -> str:
    """Write a key: mostly plainly, sometimes with escapes, sometimes almost."""
    chance = random.random()
    if chance < 0.8:
        return json.dumps(field)
    at = random.randrange(len(field))
    if chance < 0.92:
        escape = f"\\u{ord(field[at]):04x}" if random.random() < 0.5 else f"\\u{ord(field[at]):04X}"
        return f'"{field[:at]}{escape}{field[at + 1 :]}"'
    almost = random.choice(
        (field.upper(), field + " ", " " + field, field[:at] + "\u200b" + field[at:], field[:at], field + "\\u0000")
    )
    return f'"{almost}"'


def _set(draft: Draft, family: _Family, random: Random) -> None:
    """Set a field, in its place if it is there."""
    field = _field(family, random)
    found = [at for at, (key, _) in enumerate(draft.members) if key == json.dumps(field)]
    member = (_key(field, random), _value(field, random))
    if found:
        draft.members[random.choice(found)] = member
    else:
        draft.members.insert(random.randrange(len(draft.members) + 1), member)


def _repeat(draft: Draft, family: _Family, random: Random) -> None:
    """Add a field, whether it is there or not."""
    field = _field(family, random)
    draft.members.insert(random.randrange(len(draft.members) + 1), (_key(field, random), _value(field, random)))


def _limits(draft: Draft, family: _Family, random: Random) -> None:
    """Set several limits at once."""
    for field in random.sample(("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "n"), 3):
        draft.members.append((_key(field, random), random.choice(("1", "7", "400", "null", _value(field, random)))))


def _drop(draft: Draft, family: _Family, random: Random) -> None:
    if draft.members:
        draft.members.pop(random.randrange(len(draft.members)))


def _hide(draft: Draft, family: _Family, random: Random) -> None:
    """Put a look-alike into another value."""
    field = _field(family, random)
    inside = f"{_key(field, random)}:{_value(field, random)}"
    text = json.dumps("{" + inside + "}") if random.random() < 0.4 else f'{{{inside},"x":[{{{inside}}}]}}'
    draft.members.insert(
        random.randrange(len(draft.members) + 1), (random.choice(('"x"', '"metadata"', '"user"')), text)
    )


def _nest(draft: Draft, family: _Family, random: Random) -> None:
    depth = random.choice((3, 30, 300, 990, 1100, 3000))
    draft.members.append(
        ('"x"', "[" * depth + "]" * depth if random.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth)
    )


def _space(draft: Draft, family: _Family, random: Random) -> None:
    blank = random.choice((" ", "\n", "\t", "\r\n", "  \n ", "\u00a0", "\x0b", "\x0c", "/**/"))
    at = random.randrange(len(draft.members) or 1)
    if draft.members:
        key, value = draft.members[at]
        draft.members[at] = random.choice(
            ((blank + key, value), (key + blank, value), (key, blank + value), (key, value + blank))
        )


_CHANGES = (_set, _set, _set, _set, _set, _repeat, _repeat, _limits, _drop, _hide, _nest, _space)


def _encoded(random: Random) -> Callable[[bytes], bytes]:
    encoding = random.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig"))
    return lambda body: body.decode("utf-8", "surrogatepass").encode(encoding, "surrogatepass")


def _ended(random: Random) -> Callable[[bytes], bytes]:
    end = random.choice(
        (b" ", b"\n", b"\0", b"}", b"{}", b",", b"//", b"\xff", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\x1a")
    )
    return lambda body: body + end


def _begun(random: Random) -> Callable[[bytes], bytes]:
    start = random.choice(
        (b" ", b"\n", b"\0", b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf", b"\xa0", b"[", b"//\n", b"\xfe\xff")
    )
    return lambda body: start + body


def _broken(random: Random) -> Callable[[bytes], bytes]:
    chance, byte = random.random(), bytes([random.randrange(256)])

    def change(body: bytes) -> bytes:
        at = int(chance * len(body))
        return body[:at] + byte + body[at + 1 :]

    return change


def _inserted(random: Random) -> Callable[[bytes], bytes]:
    chance = random.random()
    piece = random.choice(
        (b"\xed\xa0\x80", b"\xff", b"\xc0\xaf", b",", b'"', b"\\", b"\\u", b"\0", b"\xc3\xa9", b"\xed\xb0\x80")
    )

    def change(body: bytes) -> bytes:
        at = int(chance * len(body))
        return body[:at] + piece + body[at:]

    return change


def _doubled(random: Random) -> Callable[[bytes], bytes]:
    return random.choice(
        (
            lambda body: body + body,
            lambda body: b"[" + body + b"]",
            lambda body: json.dumps(body.decode("utf-8", "replace")).encode(),
        )
    )


_WRAPS = (_encoded, _encoded, _ended, _begun, _broken, _broken, _inserted, _inserted, _doubled)
