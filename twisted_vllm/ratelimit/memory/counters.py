"""The counters of one key, user, team or end user, and the reservation of a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf

from twisted_vllm.ratelimit.allowance import KEY, Allowance
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.headers import LimitState
from twisted_vllm.ratelimit.refusals import Refusal
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.ratelimit.windows import WINDOW_SECONDS, Bucket, Window, whole_seconds

#: the limits that count requests; the other windows count tokens
REQUEST_LIMITS = frozenset({"rpm", "model_rpm"})

#: a limit's name, its value, and the window that counts it
WindowLimit = tuple[str, int, Window]


class ModelWindows:
    """The windows of one model."""

    __slots__ = ("requests", "tokens")

    def __init__(self) -> None:
        self.requests = Window()
        self.tokens = Window()

    def are_used(self, now: float) -> bool:
        """Return whether anything was counted in the last 60 seconds."""
        return not (self.requests.expire(now).is_empty and self.tokens.expire(now).is_empty)


class LocalReservation(Reservation):
    """A reservation in this process's memory.

    Attributes:
        scopes: the scopes that count the request as in flight.
        counted: the buckets that count the request and its tokens, with the limit's name and the window.
        budgets: the budgets that reserve its cost, each with its period.
    """

    __slots__ = ("budgets", "counted", "scopes")

    def __init__(self, tokens: int, cost: int) -> None:
        super().__init__(tokens, cost)
        self.scopes: list[Scope] = []
        self.counted: list[tuple[str, Window, Bucket]] = []
        self.budgets: list[tuple[Budget, int]] = []

    @property
    def key_spend(self) -> int | None:
        """The spend of the caller's key, as `Reservation.key_spend`; None for a key without a budget."""
        for budget, _ in self.budgets:
            if budget.key[0] == KEY:
                return budget.spent
        return None


class Scope:
    """The counters of one key, user, team or end user.

    Requests in flight are always counted; the rest only if it is limited.

    Attributes:
        key: the kind and the id.
        budget: its budget, if it has one.
        in_flight: the number of requests in flight.
        used_at: when it last admitted or settled a request.
    """

    __slots__ = ("_models", "_requests", "_tokens", "budget", "in_flight", "key", "used_at")

    def __init__(self, key: tuple[str, str], budget: Budget | None, now: float) -> None:
        self.key = key
        self.budget = budget
        self.in_flight = 0
        self.used_at = now
        self._requests: Window | None = None
        self._tokens: Window | None = None
        self._models: dict[str, ModelWindows] = {}

    def window_limits(self, allowance: Allowance, model: str, now: float) -> list[WindowLimit]:
        """Return the per-minute limits that apply to a request for a model."""
        limits: list[WindowLimit] = []
        if allowance.rpm is not None:
            window = self._requests = self._requests or Window()
            limits.append(("rpm", allowance.rpm, window.expire(now)))
        if allowance.tpm is not None:
            window = self._tokens = self._tokens or Window()
            limits.append(("tpm", allowance.tpm, window.expire(now)))
        limit = allowance.model_rpm.get(model)
        if limit is not None:
            limits.append(("model_rpm", limit, self._of_model(model).requests.expire(now)))
        limit = allowance.model_tpm.get(model)
        if limit is not None:
            limits.append(("model_tpm", limit, self._of_model(model).tokens.expire(now)))
        return limits

    def has_room(self, allowance: Allowance, windows: list[WindowLimit], tokens: int, cost: int) -> bool:
        """Return whether a request fits within the limits.

        Args:
            allowance: the limits.
            windows: the result of `window_limits`.
            tokens: the tokens to reserve, at least 1.
            cost: the picodollars to reserve, at least 1.
        """
        limit = allowance.parallel
        if limit is not None and self.in_flight >= limit:
            return False
        for name, limit, window in windows:
            if window.used + (1 if name in REQUEST_LIMITS else tokens) > limit:
                return False
        limit, budget = allowance.max_budget, self.budget
        return limit is None or budget is None or budget.saved + budget.unsaved + budget.reserved + cost <= limit

    def reserve(
        self, reservation: LocalReservation, allowance: Allowance, windows: list[WindowLimit], now: float
    ) -> None:
        """Count a request that `has_room` accepted."""
        self.in_flight += 1
        self.used_at = now
        reservation.scopes.append(self)
        for name, _, window in windows:
            amount = 1 if name in REQUEST_LIMITS else reservation.tokens
            reservation.counted.append((name, window, window.add(now, amount)))
        budget = self.budget
        if budget is not None and allowance.has_budget:
            budget.reserved += reservation.cost
            budget.soft = allowance.soft_budget
            reservation.budgets.append((budget, budget.epoch))

    def refusals(
        self,
        allowance: Allowance,
        windows: list[WindowLimit],
        model: str,
        tokens: int,
        cost: int,
        *,
        now: float,
        wall: float,
    ) -> Iterator[Refusal]:
        """Yield each limit that refuses a request.

        Args:
            allowance: as in `has_room`, likewise `windows`, `tokens` and `cost`.
            model: the request's model.
            now: the time of the windows.
            wall: the time of the budgets.
        """
        kind = self.key[0]
        limit = allowance.parallel
        if limit is not None and self.in_flight >= limit:
            yield Refusal(kind, "parallel", limit, 1, 1 if limit else None)
        for name, limit, window in windows:
            needed = 1 if name in REQUEST_LIMITS else tokens
            if window.used + needed > limit:
                of_model = model if name.startswith("model") else ""
                yield Refusal(kind, name, limit, needed, window.wait(limit, needed, now), of_model)
        limit, budget = allowance.max_budget, self.budget
        if limit is not None and budget is not None and budget.spent + budget.reserved + cost > limit:
            never = cost > limit or budget.ends == inf
            wait = None if never else whole_seconds(budget.ends, wall)
            yield Refusal(kind, "budget", limit, cost, wait, spent=budget.spent)

    def forget_models(self, now: float) -> None:
        """Remove the windows of models that were not used in the last 60 seconds."""
        if self._models and not self.in_flight:
            self._models = {model: windows for model, windows in self._models.items() if windows.are_used(now)}

    def is_idle(self, now: float) -> bool:
        """Return whether the counters can be removed; the budget is kept elsewhere."""
        return self.in_flight == 0 and self.used_at + WINDOW_SECONDS <= now

    def _of_model(self, model: str) -> ModelWindows:
        windows = self._models.get(model)
        if windows is None:
            windows = self._models[model] = ModelWindows()
        return windows


def tightest(limits: Iterable[WindowLimit], now: float) -> tuple[LimitState | None, LimitState | None]:
    """Return the limit of requests and the limit of tokens with the least left."""
    requests: LimitState | None = None
    tokens: LimitState | None = None
    for name, limit, window in limits:
        left = limit - window.used
        if name in REQUEST_LIMITS:
            if requests is None or left < requests[1]:
                requests = (limit, left, window.empty_after(now))
        elif tokens is None or left < tokens[1]:
            tokens = (limit, left, window.empty_after(now))
    return requests, tokens
