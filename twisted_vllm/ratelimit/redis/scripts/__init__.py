"""What Redis does in one step, in Lua, as data of the package."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files


class Script:
    """A script with the parts that it is made of.

    Attributes:
        source: its text.
        digest: its SHA-1, by which Redis knows it once it has seen it.
    """

    __slots__ = ("digest", "source")

    def __init__(self, *parts: str) -> None:
        self.source = "\n".join(parts).encode()
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest()


def part(name: str) -> str:
    """Return the text of one of the package's files."""
    return files(__package__).joinpath(f"{name}.lua").read_text("utf-8")


class Scripts:
    """All of them.

    Args:
        lease_ms: how long a process's lease lasts, in milliseconds.
        clock: the text of the function ``clock``, in place of Redis' own clock.
    """

    def __init__(self, lease_ms: int, clock: str | None = None) -> None:
        lease = f"local LEASE_MS = {lease_ms}"
        common = [lease, clock or part("clock"), part("processes"), part("windows"), part("budgets")]
        self.hello = Script(*common, part("hello"))
        self.renew = Script(*common, part("renew"))
        self.admit = Script(*common, part("admit"))
        self.settle = Script(*common, part("settle"))
        self.reset = Script(*common, part("reset"))
        self.bye = Script(*common, part("bye"))
