"""How long the periods of budgets are, by whose they are; any thread may ask."""

from __future__ import annotations

from twisted_vllm.limits.values import UNLIMITED, Allowance


class BudgetDurations:
    """The periods of those whose budget begins anew from time to time."""

    def __init__(self) -> None:
        self._durations: dict[tuple[str, str], str] = {}

    def get(self, kind: str, id: str) -> str | None:
        """Return the length of a budget's period, `kind` and `id` as in `Limited`; None never begins anew."""
        return self._durations.get((kind, id))

    def note(self, kind: str, id: str, allowance: Allowance | None) -> None:
        """Take note of what somebody is allowed now; None is somebody who is gone."""
        duration = (allowance or UNLIMITED).budget_duration
        if duration is None:
            self._durations.pop((kind, id), None)
        else:
            self._durations[kind, id] = duration
