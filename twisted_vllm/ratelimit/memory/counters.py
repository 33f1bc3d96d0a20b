"""What is counted for one key, user, team or end user."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

from twisted_vllm.ratelimit.allowance import Allowance
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.refusals import Refusal
from twisted_vllm.ratelimit.windows import WINDOW, Window, whole_seconds

if TYPE_CHECKING:
    from twisted_vllm.ratelimit.reservation import LocalReservation

#: the limits that count requests; the other windows count tokens
REQUEST_LIMITS = frozenset({"rpm", "model_rpm"})


class ModelWindows:
    """The windows of one model."""

    __slots__ = ("requests", "tokens")

    def __init__(self) -> None:
        self.requests = Window()
        self.tokens = Window()

    def are_used(self, now: float) -> bool:
        """Return whether anything was counted in the last 60 seconds."""
        return not (self.requests.tidied(now).is_empty and self.tokens.tidied(now).is_empty)


class Scope:
    """Counters in memory. What is not limited is not counted, but for the requests in work.

    Attributes:
        key: the kind and the id.
        budget: its spending, where it has a budget.
        in_work: how many requests are.
        used_at: when it was last needed.
        requests: those of the last 60 seconds.
        tokens: likewise.
        models: the windows of each model with limits of its own.
    """

    __slots__ = ("budget", "in_work", "key", "models", "requests", "tokens", "used_at")

    def __init__(self, key: tuple[str, str], budget: Budget | None) -> None:
        self.key = key
        self.budget = budget
        self.in_work = 0
        self.used_at = 0.0
        self.requests: Window | None = None
        self.tokens: Window | None = None
        self.models: dict[str, ModelWindows] | None = None

    def has_room(self, allowance: Allowance, model: str, tokens: int, cost: int, now: float) -> bool:
        """Return whether a request of so many tokens, and of such a cost, may begin; at least 1 of each is needed."""
        limit = allowance.parallel
        if limit is not None and self.in_work >= limit:
            return False
        limit = allowance.rpm
        if limit is not None:
            window = self.requests
            if window is None:
                window = self.requests = Window()
            elif now >= window.stale:
                window.tidy(now)
            if window.used >= limit:
                return False
        limit = allowance.tpm
        if limit is not None:
            window = self.tokens
            if window is None:
                window = self.tokens = Window()
            elif now >= window.stale:
                window.tidy(now)
            if window.used + tokens > limit:
                return False
        model_rpm, model_tpm = allowance.model_rpm, allowance.model_tpm
        if (model_rpm and model in model_rpm) or (model_tpm and model in model_tpm):
            windows = self.of_model(model)
            limit = model_rpm.get(model)
            if limit is not None:
                window = windows.requests
                if now >= window.stale:
                    window.tidy(now)
                if window.used >= limit:
                    return False
            limit = model_tpm.get(model)
            if limit is not None:
                window = windows.tokens
                if now >= window.stale:
                    window.tidy(now)
                if window.used + tokens > limit:
                    return False
        limit = allowance.max_budget
        budget = self.budget
        return limit is None or budget is None or budget.saved + budget.unsaved + budget.reserved + cost <= limit

    def take(self, reservation: LocalReservation, allowance: Allowance, model: str, tokens: int, now: float) -> None:
        """Count a request that `has_room`, and note where its tokens are counted, and what of the limits is left."""
        self.in_work += 1
        self.used_at = now
        limit = allowance.rpm
        window = self.requests
        if limit is not None and window is not None:
            window.add(now, 1)
            left = limit - window.used
            if left < reservation.requests_left:
                reservation.requests_left, reservation.requests_limit = left, limit
        limit = allowance.tpm
        window = self.tokens
        if limit is not None and window is not None:
            reservation.charges.append((window, window.add(now, tokens)))
            left = limit - window.used
            if left < reservation.tokens_left:
                reservation.tokens_left, reservation.tokens_limit, reservation.window = left, limit, window
        models = self.models
        if models is None or model not in models:
            return
        windows = models[model]
        limit = allowance.model_rpm.get(model)
        if limit is not None:
            window = windows.requests
            window.add(now, 1)
            left = limit - window.used
            if left < reservation.requests_left:
                reservation.requests_left, reservation.requests_limit = left, limit
        limit = allowance.model_tpm.get(model)
        if limit is not None:
            window = windows.tokens
            reservation.charges.append((window, window.add(now, tokens)))
            left = limit - window.used
            if left < reservation.tokens_left:
                reservation.tokens_left, reservation.tokens_limit, reservation.window = left, limit, window

    def give_back(self, allowance: Allowance, model: str, counted_at: float, now: float) -> None:
        """Take a request out of those that were counted."""
        for name, _, window in self.windows(allowance, model, now):
            if name in REQUEST_LIMITS:
                window.give_back(counted_at)

    def of_model(self, model: str) -> ModelWindows:
        """Return the windows of a model."""
        models = self.models
        if models is None:
            models = self.models = {}
        found = models.get(model)
        if found is None:
            found = models[model] = ModelWindows()
        return found

    def windows(self, allowance: Allowance, model: str, now: float) -> list[tuple[str, int, Window]]:
        """Return each limit that holds for a model, by its name, with its window."""
        found: list[tuple[str, int, Window]] = []
        if allowance.rpm is not None:
            window = self.requests = self.requests or Window()
            found.append(("rpm", allowance.rpm, window))
        if allowance.tpm is not None:
            window = self.tokens = self.tokens or Window()
            found.append(("tpm", allowance.tpm, window))
        limits = allowance.model_rpm
        if limits and model in limits:
            found.append(("model_rpm", limits[model], self.of_model(model).requests))
        limits = allowance.model_tpm
        if limits and model in limits:
            found.append(("model_tpm", limits[model], self.of_model(model).tokens))
        for _, _, window in found:
            if now >= window.stale:
                window.tidy(now)
        return found

    def refusals(
        self, allowance: Allowance, model: str, tokens: int, cost: int, now: float, wall: float
    ) -> Iterator[Refusal]:
        """Yield each limit that does not let a request begin; the wall's time is that of budgets."""
        kind = self.key[0]
        limit = allowance.parallel
        if limit is not None and self.in_work >= limit:
            yield Refusal(kind, "parallel", limit, 1, 1 if limit else None)
        for name, limit, window in self.windows(allowance, model, now):
            needed = 1 if name in REQUEST_LIMITS else tokens
            if window.used + needed > limit:
                which = model if name.startswith("model") else ""
                yield Refusal(kind, name, limit, needed, window.wait(limit, needed, now), which)
        limit, budget = allowance.max_budget, self.budget
        if limit is not None and budget is not None and budget.spent + budget.reserved + cost > limit:
            never = cost > limit or budget.ends == inf
            wait = None if never else whole_seconds(budget.ends, wall)
            yield Refusal(kind, "budget", limit, cost, wait, spent=budget.spent)

    def forget_models(self, now: float) -> None:
        """Forget the models that were not used of late."""
        if self.models and not self.in_work:
            self.models = {model: windows for model, windows in self.models.items() if windows.are_used(now)} or None

    def is_idle(self, now: float) -> bool:
        """Return whether nothing is left to remember but the budget."""
        return self.in_work == 0 and self.used_at + WINDOW <= now
