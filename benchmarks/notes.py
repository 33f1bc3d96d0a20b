"""Notes below the tables: which figures are missing or cannot be trusted, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

#: CPUs that other programs may use meanwhile without a note
_MOST_OTHERS = 0.2
#: the share of the due events that must come in time, or they are sent several at once
_LEAST_PACE = 0.9


class Notes:
    """Collects notes, each once."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._others: dict[str, float] = {}

    def add(self, text: str) -> None:
        """Add a note."""
        if text not in self._texts:
            self._texts.append(text)

    def others(self, during: str, cpus: float) -> None:
        """Note how many CPUs other programs used during a measurement."""
        if cpus > _MOST_OTHERS:
            self._others[during] = cpus

    def pace(self, name: str, came: float | None, due: float) -> None:
        """Note that fewer events a second came than were due."""
        if (came or 0) < _LEAST_PACE * due:
            self.add(
                f"{name}, streams: {came or 0:,.0f} chunks/s came of {due:,.0f} that were due. Several then share one "
                "read and one write, so do not compare this CPU per chunk; repeat it with fewer --streams."
            )

    def failures(self, what: str, failures: Counter[str]) -> None:
        """Note how often something failed, with the most frequent reason."""
        for reason, _times in failures.most_common(1):
            self.add(f"{what}: {failures.total():,} failed, most often: {reason}")

    def texts(self) -> list[str]:
        """Return everything, in its order."""
        return [*self._texts, *([busy(self._others)] if self._others else [])]


def busy(others: Mapping[str, float]) -> str:
    """Return the note that the machine was busy.

    Args:
        others: how many CPUs other programs used, by what was measured meanwhile.
    """
    listed = "; ".join(f"{during}: {cpus:.1f}" for during, cpus in others.items())
    return (
        "This machine was not calm: rates and latencies from then say little, and CPU figures are less exact. "
        f"CPUs that other programs used during {listed}."
    )
