"""Chooses between the server that has a prompt's beginning and the one that has less to do.

What is in flight is mostly chance: if each swing of it moved conversations, caches would be computed again and again.
So the server with the longest match is left only if it has more load than its part *and* was given more than its part
of the last requests, or if it is overloaded outright.

What costs least is done first. A new beginning goes where least was assigned. A new conversation leaves a server
earlier than one that goes on, as all that the other server must compute again is the beginning that many share. And
what leaves a server goes to one with less than its part, as a server that is nearly as busy would soon pass it on.

The figures were found with the simulated fleet of ``tests/upstreams/fleet.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted_vllm.upstreams.bounded_load import most_load

#: the share of a prompt's blocks that must be known somewhere, else its beginning is new
_KNOWN = 8

#: How far over its part of the requests a server may be, times the part of all others, and how many requests over its
#: part of the load, before it loses new conversations, and those that go on. A server of two that is given more than
#: 0.55 of the requests loses those; one over 0.59 that is busy also loses these. While few ask, a conversation stays.
_BRANCH, _CONTINUED = (0.2, 0.0), (0.35, 1.0)
#: requests that are taken for evenly shared out while few are counted
_PRIOR = 24.0
#: the requests that a new beginning is expected to bring
_EXPECTED = 8.0


def is_known(blocks: int) -> int:
    """Return how many blocks of a prompt must be known, so that its beginning is not new."""
    return (blocks + _KNOWN - 1) // _KNOWN


def choose_by_prefix(
    weights: Sequence[float],
    loads: Sequence[float],
    requests: Sequence[float],
    matched: Sequence[int],
    *,
    fresh: Sequence[float] | None = None,
    continues: bool = False,
    random: Callable[[], float],
) -> int:
    """Return the index of the server for a prompt.

    Args:
        weights: the weight of each server.
        loads: the requests that wait and run there.
        requests: the recent requests that it was given.
        matched: the blocks of the prompt that it has.
        fresh: if the prompt's beginning is new, the recent requests that had a new beginning.
        continues: whether the prompt continues one that was sent.
        random: returns a number from 0 up to 1, to choose among equals.
    """
    total = sum(weights)
    # with the request to place
    load = sum(loads) + 1.0
    recent = sum(requests) + _PRIOR
    tolerance, slack = _CONTINUED if continues else _BRANCH
    best = max(matched)
    among: list[int] = []
    for index, count in enumerate(matched):
        if count != best and fresh is None:
            continue
        part = weights[index] / total
        here = loads[index] + 1.0
        if here <= load * part + slack or (
            requests[index] + _PRIOR * part <= recent * part * (1.0 + tolerance * (1.0 - part))
            and here <= most_load(load, part)
        ):
            among.append(index)
    if len(among) == 1:
        return among[0]
    parts = [weight / total for weight in weights]
    # how much of the last requests a server was given: 1.0 is its part
    given = [(count + _PRIOR * part) / (recent * part) for count, part in zip(requests, parts, strict=True)]
    if not among:
        # those that have less than their part, now and of late
        below = [index for index, part in enumerate(parts) if loads[index] <= load * part and given[index] <= 1.0]
        most = max([matched[index] for index in below], default=0)
        among = [index for index in below if matched[index] == most] or list(range(len(parts)))
    if fresh is None:
        pressures = [(loads[index] + 1.0) / (load * parts[index]) + given[index] for index in among]
    else:
        pressures = [(loads[index] + requests[index] + _EXPECTED * fresh[index]) / parts[index] for index in among]
    least = min(pressures)
    among = [index for index, pressure in zip(among, pressures, strict=True) if pressure == least]
    return among[0] if len(among) == 1 else among[int(random() * len(among))]
