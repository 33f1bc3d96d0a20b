"""Finds the URLs that vLLM would fetch for a request.

vLLM 0.32 fetches what stands in ``image_url``, ``audio_url`` and ``video_url`` of a message's parts
(``renderers/chat_utils.py``; also those of Responses, Cohere, pooling and scoring), in ``source`` of Anthropic's parts
(``anthropic/serving.py``), in ``url`` of ``content_parts`` (``scale_out/token_in_token_out``), and in the lists
``images``, ``audio`` and ``videos`` of ``/v2/embed`` and ``/v1/systemone``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from twisted_vllm.field_policy.escapes import ESCAPED_LETTER
from twisted_vllm.field_policy.media_hosts import MAX_URL, MediaRules

#: a member of a part for images in Python. Beside ``uuid``, vLLM 0.32 passes a text in it to the model's processor, and
#: those of transformers open URLs with their redirects, and files
PROCESSORS_IMAGE = "image_pil"

#: members of a part that hold a URL, or an object with the member ``url``; vLLM 0.32 does not fetch ``file_url``
URL_MEMBERS = frozenset(("image_url", "audio_url", "video_url", "file_url", PROCESSORS_IMAGE))

#: names a medium in vLLM's cache, which all callers share: whoever knows the name gets the medium, or replaces it
CACHE_NAME = "uuid"

#: members of a part that hold a medium, and its types
_MEDIA_MEMBERS = URL_MEMBERS | frozenset(
    ("input_audio", "input_image", "image_embeds", "audio_embeds", "video_embeds", "image", "audio", "video")
)

#: members at the top level that are URLs or lists of them
URL_LISTS = ("images", "audio", "videos")

#: objects and lists that are searched for URLs, and URLs in them; the largest real requests have a tenth
MAX_VALUES = 300_000
MAX_URLS = 4096

#: objects and lists after which the search for URLs may pause
PAUSE_AFTER = 2_000
#: no URL: the search pauses
PAUSE = ("", "")

#: members at the top level that vLLM never looks into for media: a tool or a schema may have a member ``url``
_NOT_MEDIA = frozenset(
    (
        *("tools", "tool_choice", "response_format", "structured_outputs", "metadata", "text", "output_config"),
        *("chat_template_kwargs", "state", "questions", "sampling_params"),
    )
)

# the end of a key that holds a URL, and the beginning of its value
_URL_KEY = b'url"'
# the only such key that ends otherwise
_PIL_KEY = b'%b"' % PROCESSORS_IMAGE.encode()
_CACHE_KEY = b'"%b"' % CACHE_NAME.encode()
_VALUE = re.compile(rb'[ \t\n\r]*:[ \t\n\r]*(["[])?')
_DATA = b"data:"
# bytes of a body that may hold a medium
_LARGE = 65_536
# in a body that is looked at where it stands; real ones have fewer
_MOST_KEYS = 4096
# in a URL, and before one of its quotes
_MOST_QUOTES = 16
_MOST_BACKSLASHES = 64


class Repeated(list[Any]):
    """All values of a key that an object repeats, in order."""


def settled(value: Any) -> Any:
    """Return the value that counts for vLLM: of a repeated key, the last."""
    return value[-1] if isinstance(value, Repeated) else value


def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's members; the value of a repeated key is `Repeated`. For ``json.loads``."""
    found = dict(members)
    if len(found) != len(members):
        by_name: dict[str, list[Any]] = {}
        for name, value in members:
            by_name.setdefault(name, []).append(value)
        found.update({name: Repeated(values) for name, values in by_name.items() if len(values) > 1})
    return found


def urls_in(members: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the URLs that vLLM may fetch, and the names of cached media, each with the name of its member.

    It yields `PAUSE` from time to time.

    Args:
        members: the members of the body, repeated ones included; their objects as `pairs` makes them.

    Raises:
        ValueError: there are more than `MAX_VALUES`.
    """
    for name, value in members:
        if name in URL_LISTS:
            yield from ((name, url) for url in _texts(value))
        elif name not in _NOT_MEDIA:
            yield from _urls_below(value)


def _urls_below(value: Any) -> Iterator[tuple[str, str]]:
    waiting = [value]
    seen = 0
    while waiting:
        current = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ValueError("too many values")
        if seen % PAUSE_AFTER == 0:
            yield PAUSE
        if isinstance(current, list):
            waiting += [each for each in current if isinstance(each, (dict, list))]
        elif isinstance(current, dict):
            calls_tool = _is_one_of(current.get("type"), ("tool_use", "server_tool_use"))
            for name, inner in current.items():
                if name in URL_MEMBERS:
                    yield from ((name, url) for url in _urls_of(inner))
                elif name == "source":
                    sources = inner if isinstance(inner, list) else [inner]
                    yield from ((name, url) for each in sources if isinstance(each, dict) for url in _urls_of(each))
                elif name == CACHE_NAME and _is_medium(current):
                    yield from ((name, text) for text in _texts(inner))
                elif name == "url" and _is_one_of(current.get("type"), tuple(URL_MEMBERS)):
                    yield from ((name, url) for url in _texts(inner))
                elif isinstance(inner, (dict, list)) and name != "tool_calls" and not (calls_tool and name == "input"):
                    waiting.append(inner)


def _is_medium(part: dict[str, Any]) -> bool:
    return not _MEDIA_MEMBERS.isdisjoint(part) or _is_one_of(part.get("type"), tuple(_MEDIA_MEMBERS))


def _is_one_of(value: Any, names: tuple[str, ...]) -> bool:
    return any(each in names for each in (value if isinstance(value, Repeated) else (value,)) if isinstance(each, str))


def _urls_of(value: Any) -> Iterator[str]:
    """Yield the text in a URL's member: a text, an object with the member ``url``, or several of them."""
    for each in value if isinstance(value, list) else (value,):
        yield from _texts(each.get("url") if isinstance(each, dict) else each)


def _texts(value: Any) -> Iterator[str]:
    for each in value if isinstance(value, list) else (value,):
        if isinstance(each, str):
            yield each
        elif isinstance(each, Repeated):
            yield from _texts(each)


def looks_into(name: str, raw: bytes, rules: MediaRules) -> bool:
    """Return whether a member of the body must be decoded to find the URLs in it.

    Args:
        name: its name.
        raw: the JSON text of its value.
        rules: which URLs are allowed.
    """
    if name in URL_LISTS:
        return raw[:1] in (b'"', b"[")
    if name in _NOT_MEDIA or raw[:1] not in (b"[", b"{"):
        return False
    return (b"\\" in raw and ESCAPED_LETTER.search(raw) is not None) or not all_allowed(raw, rules)


def may_hold_urls(body: bytes) -> bool:
    """Return whether a JSON body may hold a URL in a member of a part. No key of it has an escaped letter."""
    # from the end it takes half the time, except where a large medium stands
    return (
        (len(body) > _LARGE and body.find(_URL_KEY, 0, _LARGE) >= 0)
        or body.rfind(_URL_KEY) >= 0
        or body.rfind(_PIL_KEY) >= 0
        or body.rfind(_CACHE_KEY) >= 0
    )


def all_allowed(body: bytes, rules: MediaRules) -> bool:
    """Return whether a server may fetch every URL in a JSON body, wherever it stands.

    False means that the body must be read whole: a URL that is refused may be one that nobody fetches. The content of
    ``data:`` URLs is skipped and not copied.

    Args:
        body: a valid JSON body. No key of it has an escaped letter, so that each key of a URL ends in ``url"`` or is
            `PROCESSORS_IMAGE`; inside a text, the quote would be escaped.
        rules: which URLs are allowed.
    """
    if body.rfind(_CACHE_KEY) >= 0:
        return False
    allows_data = "data" in rules.schemes
    offset = body.find(_URL_KEY)
    checked = 0
    for _ in range(_MOST_KEYS):
        if body.rfind(_PIL_KEY, checked, len(body) if offset < 0 else offset) >= 0:
            return False
        if offset < 0:
            return True
        value = _VALUE.match(body, offset + len(_URL_KEY))
        offset += len(_URL_KEY)
        if value is not None and value[1] is not None:
            if value[1] == b"[":
                return False
            start = value.end()
            end = _end_of_text(body, start)
            if end < 0:
                return False
            if body[start : start + 5].lower() == _DATA:
                if not allows_data:
                    return False
            elif end - start > MAX_URL or rules.refusal(_decoded(body[start:end])) is not None:
                return False
            offset = end
        checked = offset
        offset = body.find(_URL_KEY, offset)
    return False


def _end_of_text(body: bytes, start: int) -> int:
    """Return the offset of the quote that ends a text, or -1 if it has too many escaped quotes or backslashes."""
    end = body.find(b'"', start)
    for _ in range(_MOST_QUOTES):
        if end < 0:
            break
        before = body[max(start, end - _MOST_BACKSLASHES) : end]
        backslashes = len(before) - len(before.rstrip(b"\\"))
        if backslashes == _MOST_BACKSLASHES:
            return -1
        if backslashes % 2 == 0:
            return end
        end = body.find(b'"', end + 1)
    return -1


def _decoded(text: bytes) -> str:
    found: str = json.loads(b'"%b"' % text)
    return found
