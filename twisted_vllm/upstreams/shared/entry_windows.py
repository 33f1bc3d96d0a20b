"""The supervisor's account of the ``rpm`` and ``tpm`` of one entry, whose server gets requests of several workers.

The minute is the supervisor's: it counts a request when it grants it, and a worker sends what it was granted at once or
gives it back. A lease of a part of the minute would be wrong: what one worker did not use could not be used by another
in the same minute, or was used in the next one.
"""

from __future__ import annotations

from twisted_vllm.upstreams.entry_limits import EntryLimits, Share
from twisted_vllm.upstreams.shared.claims import EntryClaim, EntryGrant, Used

#: seconds by which the time of the next room may differ from what a worker was told
_SAME = 0.5


class EntryWindows:
    """Counts what workers send by one entry, and knows who waits for it."""

    __slots__ = ("_claims", "_limits", "_number", "_shares", "_told", "name")

    def __init__(self, name: str) -> None:
        """Start with nothing counted; `name` is that of the claims."""
        self.name = name
        self._limits = EntryLimits(None, None)
        # what was granted and is not settled, by process and number
        self._shares: dict[int, dict[int, Share]] = {}
        # the tokens of the requests that wait, by process; the first process is served next
        self._claims: dict[int, list[int]] = {}
        self._number = 0
        # until when each process knows that it has to wait
        self._told: dict[int, float] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for it or uses it; its minute may have counts."""
        return not self._claims and not any(self._shares.values())

    def claim(self, process: int, claim: EntryClaim) -> None:
        """Take in a claim in place of an earlier one; `grant` must follow."""
        self._limits.rpm, self._limits.tpm = claim.rpm, claim.tpm
        self._told.pop(process, None)
        if claim.tokens:
            self._claims[process] = claim.tokens[::-1]
        else:
            self._claims.pop(process, None)

    def used(self, process: int, used: Used, now: float) -> None:
        """Settle a request; `grant` may follow."""
        share = self._shares.get(process, {}).pop(used.number, None)
        if share is not None:
            self._limits.settle(share, used.tokens, now, sent=used.sent)

    def left(self, process: int) -> None:
        """Forget a process that has ended: what it was granted counts as estimated."""
        self._claims.pop(process, None)
        self._shares.pop(process, None)
        self._told.pop(process, None)

    def grant(self, now: float) -> tuple[dict[int, EntryGrant], float | None]:
        """Grant what has room, one request of each process in turn.

        Returns:
            What to tell which process, and when the next request has room, in seconds; None if nobody waits.
        """
        granted: dict[int, list[tuple[int, int]]] = {}
        until: float | None = None
        refused: set[int] = set()
        while len(refused) < len(self._claims):
            process = next(each for each in self._claims if each not in refused)
            waiting = self._claims.pop(process)
            wait = self._limits.wait(waiting[-1], now)
            if wait:
                refused.add(process)
                until = now + wait if until is None else min(until, now + wait)
                self._claims[process] = waiting
                continue
            tokens = waiting.pop()
            self._number += 1
            self._shares.setdefault(process, {})[self._number] = self._limits.take(tokens, now)
            granted.setdefault(process, []).append((self._number, tokens))
            if waiting:
                self._claims[process] = waiting
        ends = until or 0.0
        # those who know already when to expect room are not told again
        told = dict.fromkeys(each for each in self._claims if abs(self._told.get(each, 0.0) - ends) > _SAME)
        self._told.update(dict.fromkeys(told, ends))
        grants = {
            process: EntryGrant(self.name, granted.get(process, []), ends if process in self._claims else 0.0)
            for process in {**granted, **told}
        }
        return grants, until
