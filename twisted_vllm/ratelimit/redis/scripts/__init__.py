"""The Lua scripts; Redis runs each atomically."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files


class Script:
    """A script made of parts.

    Attributes:
        source: its text.
        digest: its SHA-1, by which Redis knows a script that it has run before.
    """

    __slots__ = ("digest", "source")

    def __init__(self, *parts: str) -> None:
        self.source = "\n".join(parts).encode()
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest()


class Scripts:
    """All scripts.

    Args:
        lease_ms: how long a process's lease lasts, in milliseconds.
        prefix: the prefix of all keys.
        clock: a Lua function ``clock`` that replaces Redis' own clock.
    """

    def __init__(self, lease_ms: int, prefix: str, clock: str | None = None) -> None:
        lease = f"local LEASE_MS = {lease_ms}\nlocal PREFIX = '{prefix}'"
        common = [lease, clock or _read("clock"), _read("processes"), _read("windows"), _read("budgets")]
        self.register = Script(*common, _read("register"))
        self.renew = Script(*common, _read("renew"))
        self.admit = Script(*common, _read("admit"))
        self.settle = Script(*common, _read("settle"))
        self.reset = Script(*common, _read("reset"))
        self.release = Script(*common, _read("release"))


def _read(name: str) -> str:
    return files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
