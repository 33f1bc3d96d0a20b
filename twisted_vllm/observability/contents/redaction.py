"""Takes out of prompts and answers what must not be kept: media, fields and patterns of the operator, secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from twisted_vllm.config.body_paths import Step, parse_path
from twisted_vllm.config.text_patterns import compiled

#: what stands for a field or a text that was taken out
STRUCK = "[redacted]"
#: the first step of a path in the answer
OUTPUT = "output"
#: values that are looked at in one step
VALUES_IN_STEP = 256
#: characters that are looked at in one step
TEXT_IN_STEP = 32_768
#: levels of objects and lists that are kept
DEEPEST = 64

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

    def clean(self, value: Any) -> Iterator[None]:
        """Take media and patterns out of all texts in a list or an object, in place, in bounded steps."""
        patterns = self._patterns
        values = size = 0
        waiting: list[tuple[Any, int]] = [(value, 0)]
        while waiting:
            holder, depth = waiting.pop()
            items: Any = holder.items() if isinstance(holder, dict) else enumerate(holder)
            for key, each in list(items):
                values += 1
                if isinstance(each, str):
                    size += len(each)
                    holder[key] = self._cleaned(each, key, patterns)
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

    @staticmethod
    def _cleaned(text: str, key: object, patterns: list[re.Pattern[str]]) -> str:
        if len(text) >= _SHORT_BASE64:
            text = without_media(text, key)
        for pattern in patterns:
            text = pattern.sub(STRUCK, text)
        return text


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
