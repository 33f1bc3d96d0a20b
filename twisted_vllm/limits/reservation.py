"""What a request holds from its admission to its end."""

from __future__ import annotations

from collections.abc import Sequence

from twisted_vllm.limits.budgets import Budget
from twisted_vllm.limits.headers import Headers, Standing, limit_headers
from twisted_vllm.limits.scope import Scope
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


def headers_of(limited: Sequence[Limited], scopes: Sequence[Scope], model: str, now: float) -> Headers:
    """Return ``x-ratelimit-*`` of the tightest limits: those of which the least is left."""
    tightest: dict[bool, tuple[int, int, Window]] = {}
    for who, scope in zip(limited, scopes, strict=True):
        for name, limit, window in scope.windows(who.allowance, model, now):
            requests = name.endswith("rpm")
            known = tightest.get(requests)
            if known is None or limit - window.used < known[1]:
                tightest[requests] = (limit, limit - window.used, window)
    return limit_headers(_standing(tightest.get(True), now), _standing(tightest.get(False), now))


def _standing(found: tuple[int, int, Window] | None, now: float) -> Standing | None:
    return None if found is None else (found[0], found[1], found[2].empty_after(now))
