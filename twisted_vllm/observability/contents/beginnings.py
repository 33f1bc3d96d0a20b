"""The beginning of a JSON text that is too long to keep: copied without media, and made complete again."""

from __future__ import annotations

import re

#: bytes of a text that are looked at for what fits into its beginning
LOOKED_AT = 4_194_304
#: bytes for each of which one string is looked at: a text of empty strings is cut before
BYTES_PER_STRING = 16
#: a longer string that looks like base64 or a ``data:`` URL is a medium, in bytes
LONG_MEDIUM = 1_024

_CONTENT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{},:]', re.DOTALL)
_DATA_URL = re.compile(rb"data:([\w.+/-]{1,64})")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_=-]{256}")
# a string without what was cut of its last escape, which may be a pair of surrogates
_WHOLE = re.compile(
    rb'"[^"\\]*+(?:\\(?:[^u]|u(?![dD][89abAB])[0-9a-fA-F]{4}|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})'
    rb'[^"\\]*+)*+',
    re.DOTALL,
)
_CLOSERS = {0x7B: b"}", 0x5B: b"]"}


def beginning_of(data: bytes, most: int) -> bytes:
    """Return the beginning of a JSON text: at most `most` bytes, in which media are replaced by their type and size.

    Args:
        data: the text, or the first `LOOKED_AT` bytes of it.
        most: the most bytes.
    """
    out = bytearray()
    at, size = 0, len(data)
    for _ in range(max(1_024, most // BYTES_PER_STRING)):
        room = most - len(out)
        quote = data.find(b'"', at, at + room)
        if quote < 0:
            out += data[at : at + room]
            break
        start = quote + 1
        out += data[at:start]
        # a text that is longer than what is left is cut; a medium is passed by its next quote, as it has no escapes
        kind = medium_at(data, start)
        end = data.find(b'"', start) if kind is not None else -1
        if kind is not None and (end < 0 or end - start > LONG_MEDIUM):
            out += instead_of(kind, (size if end < 0 else end) - start)
            if end < 0:
                break
        else:
            room = most - len(out)
            found = _CONTENT.match(data, start, min(size, start + room))
            end = start if found is None else found.end()
            out += data[start:end]
            if end >= size or data[end] != 0x22:
                break
        out += b'"'
        at = end + 1
        if len(out) >= most or at >= size:
            break
    return bytes(out[:most])


def medium_at(data: bytes, start: int) -> bytes | None:
    """Return the type of the medium that a string begins with; empty if it names none, None if it is no medium."""
    url = _DATA_URL.match(data, start)
    if url is not None:
        return url[1]
    return b"" if _BASE64.match(data, start) is not None else None


def instead_of(kind: bytes, size: int) -> bytes:
    """Return what stands for a medium of `size` bytes as it is spelled."""
    return b"[%b: %d bytes, not kept]" % (kind or b"base64", size)


def completed(beginning: bytes) -> bytes:
    """Return JSON with what is complete in the beginning of a JSON text, and the beginning of a last string."""
    opened: list[int] = []
    safe, tail, is_value = 0, b"", True
    for token in _TOKEN.finditer(beginning):
        first = beginning[token.start()]
        if first == 0x22:
            in_list = bool(opened) and opened[-1] == 0x5B
            if not (is_value or in_list):
                continue
            spelled = token[0]
            if len(spelled) > 1 and spelled.endswith(b'"') and not _is_open(spelled):
                safe, tail = token.end(), b""
            else:
                found = _WHOLE.match(spelled)
                whole = b'"' if found is None else found[0].decode("utf-8", "ignore").encode("utf-8")
                safe, tail = token.start(), whole + b'"'
            is_value = False
        elif first in (0x7B, 0x5B):
            opened.append(first)
            safe, tail, is_value = token.end(), b"", False
        elif first in (0x7D, 0x5D):
            if not opened:
                break
            opened.pop()
            safe, tail, is_value = token.end(), b"", False
        elif first == 0x2C:
            safe, tail, is_value = token.start(), b"", False
        else:
            is_value = True
    return beginning[:safe] + tail + b"".join(_CLOSERS[each] for each in reversed(opened))


def _is_open(spelled: bytes) -> bool:
    """Return whether the last quote of a string is escaped: then its end is missing."""
    body = spelled[1:-1]
    return (len(body) - len(body.rstrip(b"\\"))) % 2 == 1
