"""What a request holds from its admission to its end."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from twisted_vllm.limits.budgets import Budget
from twisted_vllm.limits.headers import Headers, Standing, limit_headers
from twisted_vllm.limits.scope import REQUEST_LIMITS, Scope
from twisted_vllm.limits.values import Limited
from twisted_vllm.limits.windows import Bucket, Window


class Reservation:
    """What was counted for a request, to be settled once.

    Attributes:
        tokens: how many were reserved.
        cost: the money that was, in picodollars.
        settled: whether it is over.
    """

    __slots__ = ("cost", "settled", "tokens")

    def __init__(self, tokens: int, cost: int) -> None:
        self.tokens = tokens
        self.cost = cost
        self.settled = False

    @property
    def headers(self) -> Headers:
        """``x-ratelimit-*`` of the tightest limits, after this request; empty where nothing is limited by the minute.

        Meant for the head of the response: what it says is how things stand when it is asked.
        """
        raise NotImplementedError


class LocalReservation(Reservation):
    """What a request holds in this process's memory.

    Attributes:
        scopes: whose requests it is one of.
        charges: where its tokens are counted.
        budgets: where its cost is reserved, and in which period of each.
    """

    __slots__ = ("_limited", "_model", "_now", "budgets", "charges", "scopes")

    def __init__(
        self,
        limited: Sequence[Limited],
        model: str,
        tokens: int,
        cost: int,
        now: float,
        scopes: list[Scope],
    ) -> None:
        self.tokens = tokens
        self.cost = cost
        self.settled = False
        self.scopes = scopes
        self.charges: list[tuple[Window, Bucket]] = []
        self.budgets: list[tuple[Budget, int]] = []
        self._limited = limited
        self._model = model
        self._now = now

    @property
    def headers(self) -> Headers:
        """See `Reservation.headers`."""
        return headers_of(self._limited, self.scopes, self._model, self._now)

    def give_back(self, now: float) -> None:
        """Count the request as none."""
        for who, scope in zip(self._limited, self.scopes, strict=True):
            scope.give_back(who.allowance, self._model, self._now, now)


def headers_of(limited: Sequence[Limited], scopes: Sequence[Scope], model: str, now: float) -> Headers:
    """Return ``x-ratelimit-*`` of the tightest limits: those of which the least is left."""
    requests = tokens = None
    fewest_requests = fewest_tokens = inf
    for who, scope in zip(limited, scopes):  # noqa: B905 - of one length, and each call of strict= costs
        for name, limit, window in scope.windows(who.allowance, model, now):
            left = limit - window.used
            if name in REQUEST_LIMITS:
                if left < fewest_requests:
                    fewest_requests, requests = left, (limit, left, window)
            elif left < fewest_tokens:
                fewest_tokens, tokens = left, (limit, left, window)
    return limit_headers(_standing(requests, now), _standing(tokens, now))


def _standing(found: tuple[int, int, Window] | None, now: float) -> Standing | None:
    return None if found is None else (found[0], found[1], found[2].empty_after(now))
