"""Takes out of prompts and answers what must not be kept: media, fields and patterns of the operator, secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from twisted_vllm.auth.credentials import strike_out
from twisted_vllm.config.body_paths import Step, parse_path
from twisted_vllm.config.text_patterns import compiled
from twisted_vllm.observability.logging.redaction import MASK

#: what stands for a field or a text that was taken out
STRUCK = "[redacted]"
#: the first step of a path in the answer
OUTPUT = "output"
#: values that are looked at in one step
VALUES_IN_STEP = 256
#: characters that are looked at in one step
TEXT_IN_STEP = 8_192
#: levels of objects and lists that are kept
DEEPEST = 64

#: a shorter text holds no secret and no personal data, in characters
SHORTEST = 4

_BREAK = re.compile(r"\s(?=\S)")
# words after which a secret may stand, and how far before it
_BEFORE_SECRETS = ("bearer", "authorization", "api-key", "api_key")
_FAR_BEFORE = 96
#: places that are looked at for the end of a piece
_MOST_BREAKS = 256
# the longest name that is looked over: shorter ones hold no key
_LONG_NAME = 8
#: members whose texts are secrets, whoever they are for, such as the headers of a tool
_SECRET_MEMBERS = frozenset(
    (
        *("api_key", "api-key", "apikey", "x-api-key", "authorization", "proxy-authorization", "password"),
        *("access_token", "refresh_token", "client_secret"),
    )
)
#: base64 that is longer, in characters, is a medium wherever it stands
_LONG_BASE64 = 1_024
#: members that hold media; there, less base64 is one as well
_MEDIA_MEMBERS = frozenset(
    ("data", "b64_json", "file_data", "image", "audio", "video", "prompt_embeds", "embedding", "url", "image_embeds")
)
_SHORT_BASE64 = 64

_DATA_URL = re.compile(r"data:([\w.+/-]{1,64})?(?:;[\w=.+-]{1,64}){0,4},[^\s\"'<>)]*", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]++={0,2}\Z")


class Redaction:
    """What the operator wants taken out. It is made of settings once."""

    def __init__(self, fields: Sequence[str] = (), patterns: Sequence[str] = ()) -> None:
        """Read paths and patterns, which were checked.

        Args:
            fields: paths, as in `twisted_vllm.config.body_paths`.
            patterns: as in `twisted_vllm.config.text_patterns`.
        """
        paths = [parse_path(field) for field in fields]
        self._of_body = [path for path in paths if path[0].name != OUTPUT]
        self._of_answer = [path[1:] for path in paths if path[0].name == OUTPUT and len(path) > 1]
        self._patterns = [compiled(pattern) for pattern in patterns]

    def strike_body(self, body: dict[str, Any]) -> None:
        """Take fields out of a body, in place."""
        for path in self._of_body:
            strike(body, path)

    def strike_answer(self, answer: dict[str, Any]) -> None:
        """Take fields out of an answer, in place."""
        for path in self._of_answer:
            strike(answer, path)
            for choice in answer.get("choices", ()):
                strike(choice, path)

    def clean(self, value: Any, secrets: Secrets) -> Iterator[None]:
        """Take media, patterns and secrets out of all texts in a list or an object, in place, in bounded steps."""
        values = size = 0
        waiting: list[tuple[Any, int]] = [(value, 0)]
        while waiting:
            holder, depth = waiting.pop()
            if isinstance(holder, dict):
                _strike_names(holder, secrets)
            items: Any = holder.items() if isinstance(holder, dict) else enumerate(holder)
            for key, each in list(items):
                values += 1
                if isinstance(each, str):
                    size += len(each)
                    if len(each) > TEXT_IN_STEP:
                        yield
                        holder[key] = yield from self._long(each, key, secrets)
                    elif len(each) >= SHORTEST:
                        holder[key] = secrets.strike(self._without_patterns(each, key))
                elif isinstance(each, (dict, list)):
                    if depth >= DEEPEST:
                        holder[key] = "[nested too deeply, not kept]"
                    elif isinstance(each, list) and _are_numbers(each):
                        holder[key] = f"[{len(each)} numbers, not kept]"
                    else:
                        waiting.append((each, depth + 1))
                if values >= VALUES_IN_STEP or size >= TEXT_IN_STEP:
                    values = size = 0
                    yield

    def _long(self, text: str, key: object, secrets: Secrets) -> Generator[None, None, str]:
        text = self._without_patterns(text, key)
        yield
        found = []
        for piece in pieces_of(text):
            found.append(secrets.strike(piece))
            yield
        return "".join(found)

    def _without_patterns(self, text: str, key: object) -> str:
        if key in _SECRET_MEMBERS or (isinstance(key, str) and key.lower() in _SECRET_MEMBERS):
            return STRUCK
        if len(text) >= _SHORT_BASE64:
            text = without_media(text, key)
        for pattern in self._patterns:
            text = pattern.sub(STRUCK, text)
        return text


class Secrets:
    """Removes secrets from texts: those of the gateway, those that a request carried, and what has their form."""

    def __init__(self, redact: Callable[[str], str], may_change: Callable[[str], bool], carried: Sequence[str]) -> None:
        """Take what removes them.

        Args:
            redact: removes those of the gateway, and what has the form of one.
            may_change: tells quickly whether `redact` may change a text.
            carried: those of the request.
        """
        self._redact = redact
        self._may_change = may_change
        self._carried = tuple(carried)

    def strike(self, text: str) -> str:
        """Return a text without secrets."""
        if self._may_change(text):
            text = self._redact(text)
        return strike_out(text, self._carried, MASK) if self._carried else text


def pieces_of(text: str) -> Iterator[str]:
    """Yield a long text in pieces that end between words, where no secret is cut."""
    at = 0
    while len(text) - at > TEXT_IN_STEP:
        end = _end_of_piece(text, at + TEXT_IN_STEP)
        if end is None:
            break
        yield text[at:end]
        at = end
    yield text[at:]


def _end_of_piece(text: str, at: int) -> int | None:
    """Return where a word ends after which no secret stands, such as in ``Bearer KEY``; None if it is not near."""
    for found in islice(_BREAK.finditer(text, at), _MOST_BREAKS):
        end = found.start()
        before = text[max(0, end - _FAR_BEFORE) : end].lower()
        if not any(word in before for word in _BEFORE_SECRETS):
            return end
    return None


def _strike_names(holder: dict[Any, Any], secrets: Secrets) -> None:
    """Take secrets out of the names of members, which clients choose."""
    for name in [name for name in holder if len(name) > _LONG_NAME]:
        struck = secrets.strike(name)
        if struck != name:
            holder[struck] = holder.pop(name)


def without_media(text: str, key: object = "") -> str:
    """Return a text with the type and the size of each medium in its place.

    Args:
        text: the text.
        key: the member that it is.
    """
    if "data:" in text[:5].lower() or "base64," in text:
        text = _DATA_URL.sub(_instead, text)
    shortest = _SHORT_BASE64 if key in _MEDIA_MEMBERS else _LONG_BASE64
    if len(text) >= shortest and _BASE64.match(text) is not None and not _is_word(text):
        return f"[base64: {len(text)} bytes, not kept]"
    return text


def _is_word(text: str) -> bool:
    """Return whether a long text without spaces is no base64, such as one letter again and again."""
    return len(set(text[:256])) < 8


def _instead(found: re.Match[str]) -> str:
    return f"[{found[1] or 'data'}: {len(found[0])} bytes, not kept]"


def _are_numbers(values: list[Any]) -> bool:
    return len(values) > 32 and all(isinstance(each, (int, float)) for each in values)


def strike(value: Any, path: tuple[Step, ...]) -> None:
    """Take what a path names out of a value, in place."""
    holders = [value]
    for number, step in enumerate(path):
        last = number == len(path) - 1
        found = []
        for holder in holders:
            if isinstance(holder, list) and not step.items:
                # a list without [] in the path: each of its items is meant
                found += _step(step, [each for each in holder if isinstance(each, dict)], last=last)
            elif isinstance(holder, dict):
                found += _step(step, [holder], last=last)
        holders = found


def _step(step: Step, holders: list[dict[str, Any]], *, last: bool) -> list[Any]:
    found: list[Any] = []
    for holder in holders:
        names = list(holder) if step.name == "*" else [step.name] if step.name in holder else []
        for name in names:
            value = holder[name]
            if not step.items:
                if last:
                    holder[name] = STRUCK
                else:
                    found.append(value)
                continue
            if not isinstance(value, list):
                continue
            for index, item in enumerate(value):
                if step.key and not (isinstance(item, dict) and item.get(step.key) == step.value):
                    continue
                if last:
                    value[index] = {step.key: step.value, "text": STRUCK} if step.key else STRUCK
                else:
                    found.append(item)
    return found


def mended(value: Any) -> Any:
    """Return a value whose texts can be encoded: half a pair of surrogates becomes U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, list):
        return [mended(each) for each in value]
    if isinstance(value, dict):
        return {mended(name): mended(each) for name, each in value.items()}
    return value


encode = msgspec.json.Encoder().encode
