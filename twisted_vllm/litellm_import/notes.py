"""What an import could not keep, object by object."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

import attrs

from twisted_vllm.auth.records import HASH_PREFIX_LENGTH

#: characters of a name that a line shows
_SHOWN = 80
_SECRET = re.compile(r"sk-[!-~]{13,}|\b[0-9a-fA-F]{64}\b")


class Outcome(Enum):
    """What became of an object."""

    #: it was not copied
    SKIPPED = "Not copied"
    #: It is refused until an administrator unblocks it: what restricted it does not exist here.
    BLOCKED = "Copied, but blocked"
    #: it works; something that restricts nobody was left out
    LESS = "Copied without"


@attrs.frozen
class Note:
    """One line of the report.

    Attributes:
        outcome: what became of it.
        subject: what it is, such as ``key "ada"``; it holds no secret.
        text: why, or what was left out.
    """

    outcome: Outcome
    subject: str
    text: str


class Notes:
    """The notes of an import, each once."""

    def __init__(self) -> None:
        self._notes: dict[Note, None] = {}

    def __iter__(self) -> Iterator[Note]:
        return iter(self._notes)

    def add(self, outcome: Outcome, subject: str, text: str) -> None:
        """Add a note. Idempotent."""
        self._notes[Note(outcome, subject, text)] = None

    def of(self, outcome: Outcome) -> list[Note]:
        """Return the notes with this outcome."""
        return [each for each in self._notes if each.outcome is outcome]


def clean(name: object) -> str:
    """Return a name for a line of the report: printable, of bounded length, without what looks like a key."""
    text = _SECRET.sub("…", str(name))
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def named(kind: str, name: object, identity: str = "") -> str:
    """Return what a line calls an object: ``key "ada" (1a2b3c4d)``.

    Args:
        kind: what it is.
        name: its name; None where it has none.
        identity: its id, or a key's hash, of which the first digits are shown.
    """
    shown = [kind]
    if name:
        shown.append(f'"{clean(name)}"')
    if identity and kind == "key":
        shown.append(f"({clean(identity[:HASH_PREFIX_LENGTH])})")
    elif identity and identity != name:
        shown.append(f"({clean(identity)})" if name else f'"{clean(identity)}"')
    return " ".join(shown)
