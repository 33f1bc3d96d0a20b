"""Values that must not be shown, and master keys that are given as a hash."""

from __future__ import annotations

import re

#: the prefix of a master key that is given as its SHA-256
HASH_PREFIX = "sha256:"

_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")


class Secret:
    """A string that is hidden in logs, errors and reprs; ``reveal`` is the only way to its value."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value, for code that must send or compare it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))


def hash_of(master_key: Secret) -> str | None:
    """Return the SHA-256 of a master key given as its hash, in lower-case hex; ``None`` if the key itself is given."""
    found = _HASH.fullmatch(master_key.reveal())
    return None if found is None else found[1].lower()
