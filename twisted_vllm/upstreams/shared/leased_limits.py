"""The ``rpm`` and ``tpm`` of an entry in a worker: what the supervisor granted, and nothing else, may be sent."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from twisted_vllm.upstreams.entry_limits import EntryLimits, Share
from twisted_vllm.upstreams.shared.claims import EntryGrant, Used


class _Granted(Share):
    """What a granted request takes; `number` is that of its grant, or None once it was settled."""

    __slots__ = ("number",)

    def __init__(self, tokens: int, number: int) -> None:
        super().__init__(tokens, None, None)
        self.number: int | None = number


class LeasedLimits(EntryLimits):
    """The limits of an entry in a worker.

    Attributes:
        name: the entry's name in claims.
        claimed: the tokens of the requests that the supervisor knows to wait here.
    """

    __slots__ = ("__weakref__", "_hand", "_until", "_use", "claimed", "name")

    def __init__(self, name: str, rpm: int | None, tpm: int | None, use: Callable[[Used], None]) -> None:
        """Start with nothing granted.

        Args:
            name: the entry's name in claims.
            rpm: as in `EntryLimits`.
            tpm: likewise.
            use: tells the supervisor what a granted request used.
        """
        super().__init__(rpm, tpm)
        self.name = name
        self.claimed: list[int] = []
        self._use = use
        # the numbers of grants by their tokens
        self._hand: dict[int, list[int]] = {}
        self._until = 0.0

    def __repr__(self) -> str:
        return f"<LeasedLimits {self.name}, {sum(map(len, self._hand.values()))} granted>"

    @property
    def has_grants(self) -> bool:
        """Whether a request may be sent."""
        return bool(self._hand)

    def granted(self, grant: EntryGrant) -> None:
        """Take what the supervisor granted."""
        self._until = grant.until
        for number, tokens in grant.granted:
            self._hand.setdefault(tokens, []).append(number)
            if tokens in self.claimed:
                self.claimed.remove(tokens)

    def give_back(self) -> None:
        """Give back what was granted and is not needed."""
        hand, self._hand = self._hand, {}
        for numbers in hand.values():
            for number in numbers:
                self._use(Used(self.name, number, 0, False))

    def wait(self, tokens: int, now: float) -> int:
        """Return 0 if a request with these tokens was granted; else the seconds until one may be, at least 1.

        With no tokens, any grant will do: it is asked whether there is room at all.
        """
        if tokens in self._hand or (not tokens and self._hand):
            return 0
        return max(1, ceil(self._until - now))

    def known_wait(self, tokens: int, now: float) -> int:
        """Return the whole seconds for which a request certainly has no room, as the supervisor said."""
        return 0 if tokens in self._hand else max(0, ceil(self._until - now))

    def take(self, tokens: int, now: float) -> Share:
        """Use a grant; a request that goes nowhere else may use one of other tokens."""
        found = tokens if tokens in self._hand else next(iter(self._hand), None)
        if found is None:
            # a last resort of an operator: it is sent, and the supervisor has not counted it
            return Share(tokens, None, None)
        numbers = self._hand[found]
        number = numbers.pop()
        if not numbers:
            del self._hand[found]
        return _Granted(found, number)

    def settle(self, share: Share, tokens: int, now: float, *, sent: bool = True) -> None:
        """Tell the supervisor what a request used. Idempotent."""
        if isinstance(share, _Granted) and share.number is not None:
            number, share.number = share.number, None
            self._use(Used(self.name, number, tokens, sent))
