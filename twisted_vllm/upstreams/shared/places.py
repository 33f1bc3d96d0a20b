"""The supervisor's account of one limit that its workers share. It does no I/O."""

from __future__ import annotations

from collections.abc import Iterator

from twisted_vllm.upstreams.shared.claims import Claim, Grant
from twisted_vllm.upstreams.shared.fair_shares import fair_shares

#: of a limit that nobody fills, a worker gets up to this share more than it asks for, so that it asks less often
_BLOCK = 8


class _Holder:
    """What one worker has of the limit.

    Attributes:
        held: the places that it has; those that it uses and those that it does not.
        need: how many it could use.
        weight: by what it gets its part, if all want more than there is.
        keep: how many it was told to keep; None if all.
        recall: the number of the recall that it has not answered; 0 for none.
    """

    __slots__ = ("held", "keep", "need", "recall", "weight")

    def __init__(self) -> None:
        self.held = self.need = self.recall = 0
        self.weight = 1
        self.keep: int | None = None


class Places:
    """The places of one limit: never are more held than there are, unless the limit was lowered."""

    __slots__ = ("_holders", "_recalls", "limit", "name")

    def __init__(self, name: str) -> None:
        """Create it, with no places yet; `name` is that of the claims."""
        self.name = name
        self.limit = 0
        self._holders: dict[int, _Holder] = {}
        self._recalls = 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds or wants anything of it."""
        return not any(each.held or each.need for each in self._holders.values())

    @property
    def held(self) -> int:
        """How many places are held."""
        return sum(each.held for each in self._holders.values())

    def waits_for(self, process: int) -> bool:
        """Return whether other processes may still give a process places at once."""
        return any(each.recall for number, each in self._holders.items() if number != process)

    def claim(self, process: int, claim: Claim) -> None:
        """Take in a claim; `balance` must follow."""
        holder = self._holders.setdefault(process, _Holder())
        self.limit = claim.limit
        holder.held = max(holder.held - claim.returned, 0)
        holder.need, holder.weight = claim.need, max(claim.weight, 1)
        if claim.recall and claim.recall == holder.recall:
            holder.recall = 0

    def left(self, process: int) -> bool:
        """Take back what a process holds that has ended; return whether it held or wanted anything."""
        return self._holders.pop(process, None) is not None

    def ask_again(self, process: int) -> Iterator[tuple[int, Grant]]:
        """Ask the others what they need now, if a process gets less than it needs; yield what to tell which process.

        What they told may be an old story: nobody tells each request that ends.
        """
        asking = self._holders.get(process)
        if asking is None or asking.held >= asking.need:
            return
        for number, holder in self._holders.items():
            if number != process and holder.held and not holder.recall:
                self._recalls += 1
                holder.recall = self._recalls
                yield number, Grant(self.name, 0, -1 if holder.keep is None else holder.keep, self._recalls)

    def balance(self) -> Iterator[tuple[int, Grant]]:
        """Grant what is free, and take back what others need; yield what to tell which process."""
        holders = self._holders
        shares = fair_shares(self.limit, [(each.need, each.weight) for each in holders.values()])
        parts = dict(zip(holders, shares, strict=True))
        free = self.limit - self.held
        missing = 0
        # those with the least are the first
        for process in sorted(holders, key=lambda each: holders[each].held):
            holder, part = holders[process], parts[process]
            lacking = part - holder.held
            if lacking <= 0:
                continue
            given = max(min(lacking, free), 0)
            missing += lacking - given
            if given:
                free -= given
                if not missing and sum(parts.values()) < self.limit:
                    block = min(free, self.limit // (_BLOCK * len(holders)))
                    given += block
                    free -= block
                holder.held += given
                holder.keep = None
                yield process, Grant(self.name, given)
        missing += max(-free, 0)
        yield from self._recall(missing, parts)

    def _recall(self, missing: int, parts: dict[int, int]) -> Iterator[tuple[int, Grant]]:
        """Take back places from those that have more than their part, the richest first."""
        surplus = {process: each.held - parts[process] for process, each in self._holders.items()}
        for process in sorted(surplus, key=lambda each: -surplus[each]):
            holder = self._holders[process]
            taken = max(min(surplus[process], missing), 0)
            missing -= taken
            keep = holder.held - taken if taken else None
            if keep == holder.keep:
                continue
            holder.keep = keep
            if keep is None:
                yield process, Grant(self.name, 0)
            else:
                self._recalls += 1
                holder.recall = self._recalls
                yield process, Grant(self.name, 0, keep, self._recalls)
