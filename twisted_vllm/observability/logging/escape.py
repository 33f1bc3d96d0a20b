"""Keeps text from a client from acting in the log: no forged lines, no terminal escapes, no reversed writing."""

from __future__ import annotations

import re

#: a longer text is cut, in characters: one traceback must not fill the writer's queue
MAX_TEXT_LENGTH = 64 * 1024

_PLAIN_WORD = re.compile(r"[\w./:@%+*?&~!$,;#()\[\]{}<>|^-]+", re.ASCII)


def one_line(text: str) -> str:
    """Return the text with everything that does not print, newlines included, as a visible escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def many_lines(text: str, indent: str) -> str:
    """Return the text with its lines kept, and each but the first indented, so that none can pass for a log line."""
    return f"\n{indent}".join(one_line(line.expandtabs(4)) for line in text.split("\n"))


def word(text: str) -> str:
    """Return the text as one word of a line: quoted where it could be taken for several."""
    if _PLAIN_WORD.fullmatch(text):
        return text
    return '"' + one_line(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def json_line(encoded: bytes) -> bytes:
    """Return encoded JSON with what does not print escaped: an encoder leaves U+0085 and U+2028 as they are."""
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    text = encoded.decode("utf-8")
    if text.isprintable():
        return encoded
    return "".join(c if c.isprintable() else _json_escape(c) for c in text).encode("utf-8")


def cut(text: str) -> str:
    """Return the text, or its beginning and how much was cut."""
    if len(text) <= MAX_TEXT_LENGTH:
        return text
    return f"{text[:MAX_TEXT_LENGTH]} ... ({len(text) - MAX_TEXT_LENGTH} more characters)"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
