"""What a request holds from its admission to its end."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.headers import REQUEST_LINES, TOKEN_LINES, Headers, Standing, go_duration, limit_headers
from twisted_vllm.ratelimit.memory.counters import REQUEST_LIMITS, Scope
from twisted_vllm.ratelimit.windows import Bucket, Window


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
        """``x-ratelimit-*`` of the tightest limits, after this request; empty where none is by the minute."""
        raise NotImplementedError

    @property
    def lines(self) -> bytes:
        """The same as lines of a head."""
        return b"".join([b"%b: %b\r\n" % pair for pair in self.headers])


class LocalReservation(Reservation):
    """What a request holds in this process's memory.

    Attributes:
        scopes: whose requests it is one of.
        charges: where its tokens are counted.
        budgets: where its cost is reserved, and in which period of each.
        requests_left: what its admission left of the tightest limit of requests, and of `requests_limit`, that limit;
            infinity where there is none.
        tokens_left: likewise of tokens, of `tokens_limit`, which `window` counts.
    """

    __slots__ = (
        "_limited",
        "_model",
        "_now",
        "budgets",
        "charges",
        "requests_left",
        "requests_limit",
        "scopes",
        "tokens_left",
        "tokens_limit",
        "window",
    )

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
        self.requests_left: float = inf
        self.requests_limit = 0
        self.tokens_left: float = inf
        self.tokens_limit = 0
        self.window: Window | None = None
        self._limited = limited
        self._model = model
        self._now = now

    @property
    def headers(self) -> Headers:
        """See `Reservation.headers`."""
        return [(name, value) for name, _, value in (line.partition(b": ") for line in self.lines.splitlines())]

    @property
    def lines(self) -> bytes:
        """See `Reservation.lines`; written at once, as every limited request needs them."""
        lines = b""
        left = self.requests_left
        if left != inf:
            # it was counted itself a moment ago: all is there again a window after that
            lines = REQUEST_LINES % (self.requests_limit, left if left > 0 else 0, b"1m0s")
        left = self.tokens_left
        if left != inf:
            window = self.window
            reset = b"1m0s" if self.tokens or window is None else go_duration(window.empty_after(self._now))
            lines += TOKEN_LINES % (self.tokens_limit, left if left > 0 else 0, reset)
        return lines

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
