"""How a limit is shared out among processes that want parts of it."""

from __future__ import annotations

from collections.abc import Sequence


def fair_shares(limit: int, wanted: Sequence[tuple[int, int]]) -> list[int]:
    """Return what each gets: all that it wants, if that leaves the others their part; else a part by its weight.

    This is max-min fairness: nobody who wants more has less than another of the same weight, but for one by rounding.

    Args:
        limit: what there is, 0 or more.
        wanted: how many each wants, 0 or more, and its weight, above 0.
    """
    shares = [0] * len(wanted)
    # who is satisfied by the smallest part comes first
    order = sorted(range(len(wanted)), key=lambda each: (wanted[each][0] / wanted[each][1], each))
    left, weights = limit, sum(weight for _, weight in wanted)
    for index in order:
        most, weight = wanted[index]
        # rounded up: what the first of equals get too much, the later ones lack by at most one each
        shares[index] = min(most, left, -(-left * weight // weights))
        left -= shares[index]
        weights -= weight
    return shares
