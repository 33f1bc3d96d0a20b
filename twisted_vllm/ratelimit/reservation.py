"""The reservation of a request, from its admission to its end."""

from __future__ import annotations

from twisted_vllm.ratelimit.headers import Headers, LimitState, limit_headers, limit_lines


class Reservation:
    """The amounts reserved for a request. Each limiter has its own subclass, and settles it once.

    Attributes:
        tokens: the reserved tokens.
        cost: the reserved cost, in picodollars.
        requests_left: the tightest limit of requests after this request; None without one.
        tokens_left: the tightest limit of tokens, likewise.
        settled: whether it was settled.
    """

    __slots__ = ("cost", "requests_left", "settled", "tokens", "tokens_left")

    def __init__(self, tokens: int, cost: int) -> None:
        self.tokens = tokens
        self.cost = cost
        self.requests_left: LimitState | None = None
        self.tokens_left: LimitState | None = None
        self.settled = False

    @property
    def key_spend(self) -> int | None:
        """The spend of the caller's key in its budget's period before this request; None where it is not known."""
        return None

    @property
    def headers(self) -> Headers:
        """``x-ratelimit-*`` of the tightest limits."""
        return limit_headers(self.requests_left, self.tokens_left)

    @property
    def lines(self) -> bytes:
        """The same as serialized lines."""
        return limit_lines(self.requests_left, self.tokens_left)
