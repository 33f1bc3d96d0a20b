"""What a reader must know about the figures: what is missing, and which are not to be trusted, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

#: CPUs that other programs may use meanwhile before it is said
_MOST_OTHERS = 0.2
#: the share of the events that were due which must come for them to count as coming one by one
_LEAST_PACE = 0.9


class Notes:
    """Collects what is to be said, each thing once."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._others: dict[str, float] = {}

    def add(self, text: str) -> None:
        """Say this."""
        if text not in self._texts:
            self._texts.append(text)

    def others(self, during: str, cpus: float) -> None:
        """Tell how many CPUs other programs used during something."""
        if cpus > _MOST_OTHERS:
            self._others[during] = cpus

    def pace(self, name: str, came: float | None, due: float) -> None:
        """Tell how many events of streams came in a second, and how many were due."""
        if (came or 0) < _LEAST_PACE * due:
            self.add(
                f"{name}, streams: {came or 0:,.0f} chunks/s came of {due:,.0f} that were due. Several then share one "
                "read and one write, so do not compare this CPU per chunk; repeat it with fewer --streams."
            )

    def failures(self, what: str, failures: Counter[str]) -> None:
        """Tell that something failed so often, with the most frequent reason."""
        for reason, _times in failures.most_common(1):
            self.add(f"{what}: {failures.total():,} failed, most often: {reason}")

    def texts(self) -> list[str]:
        """Return everything, in its order."""
        return [*self._texts, *([busy(self._others)] if self._others else [])]


def busy(others: Mapping[str, float]) -> str:
    """Say that the machine was not calm.

    Args:
        others: how many CPUs other programs used, by what was measured meanwhile.
    """
    listed = "; ".join(f"{during}: {cpus:.1f}" for during, cpus in others.items())
    return (
        "This machine was not calm: rates and latencies from then say little, and CPU figures are less exact. "
        f"CPUs that other programs used during {listed}."
    )
