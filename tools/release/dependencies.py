"""What the gateway needs when it runs: its dependencies, theirs, and so on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from attrs import frozen
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "twisted-vllm"
#: extras that are for who changes the gateway, not for who runs it
_OF_DEVELOPERS = frozenset(("dev", "docs", "live", "release"))


@frozen
class Dependency:
    """A distribution that is needed.

    Attributes:
        found: the installed distribution.
        extras: the extras of the gateway that need it; empty if the gateway always does.
    """

    found: Distribution
    extras: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name as its authors write it."""
        return str(self.found.metadata["Name"])

    @property
    def key(self) -> str:
        """The name as PyPI compares it."""
        return str(canonicalize_name(self.name))


def runtime_extras() -> Sequence[str]:
    """Return the gateway's extras that are for who runs it."""
    extras = distribution(PROJECT).metadata.get_all("Provides-Extra") or ()
    return [extra for extra in sorted(extras) if extra not in _OF_DEVELOPERS]


def dependencies() -> Sequence[Dependency]:
    """Return everything that the installed gateway needs with all its extras, by name.

    Raises:
        PackageNotFoundError: something of it is not installed.
    """
    gateway = distribution(PROJECT)
    always = _behind(gateway, ())
    of_extra = {extra: _behind(gateway, (extra,)) for extra in runtime_extras()}
    names = sorted({*always, *(name for found in of_extra.values() for name in found)})
    return [
        Dependency(
            distribution(name), () if name in always else tuple(extra for extra, has in of_extra.items() if name in has)
        )
        for name in names
    ]


def _behind(of: Distribution, extras: Iterable[str]) -> frozenset[str]:
    """Return the names of what a distribution needs with these extras, and what that needs."""
    seen: set[tuple[str, str]] = set()
    waiting = [(of, extra) for extra in ("", *extras)]
    while waiting:
        at, extra = waiting.pop()
        for text in at.requires or ():
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *needed.extras):
                pair = (str(canonicalize_name(needed.name)), wanted)
                if pair in seen:
                    continue
                seen.add(pair)
                try:
                    waiting.append((distribution(needed.name), wanted))
                except PackageNotFoundError as error:
                    raise PackageNotFoundError(f"{needed.name}, which {at.metadata['Name']} needs") from error
    return frozenset(name for name, _ in seen)
