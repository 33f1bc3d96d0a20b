"""Chooses between the server that has a prompt's beginning and the one that has less to do.

What is in flight is mostly chance: if each swing of it moved conversations, caches would be computed again and again. So
the server with the longest match is left only if it has more load than its part *and* was given more than its part of
the last requests, or if it is overloaded outright. And what costs least comes first: a new beginning goes where least
was assigned, a new conversation is moved earlier than one that goes on, and what leaves a server goes where it relieves
the fleet, not to another server that is nearly as busy.

The figures were found with the simulated fleet of ``tests/upstreams/fleet.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted_vllm.upstreams.bounded_load import most_load

#: the share of a prompt's blocks that must be known somewhere, else its beginning is new
_KNOWN = 8

#: a server of two may get so much over its half of the requests, divided by 2, before requests go elsewhere: those that
#: share a beginning with others, and those that go on with a conversation. In a large fleet twice as much.
_BRANCH, _CONTINUED = 0.2, 0.35
#: requests that are taken for evenly shared out while few are counted
_PRIOR = 8.0
#: the requests that a new beginning is expected to bring
_EXPECTED = 8.0


def is_known(blocks: int) -> int:
    """Return how many blocks of a prompt must be known, so that its beginning is not new."""
    return (blocks + _KNOWN - 1) // _KNOWN


def choose_by_prefix(
    weights: Sequence[float],
    loads: Sequence[float],
    requests: Sequence[float],
    fresh: Sequence[float],
    matched: Sequence[int],
    *,
    blocks: int,
    continues: bool,
    random: Callable[[], float],
) -> int:
    """Return the index of the server for a prompt.

    Args:
        weights: the weight of each server.
        loads: the requests that wait and run there.
        requests: the recent requests that it was given.
        fresh: those of them that had a new beginning.
        matched: the blocks of the prompt that it has.
        blocks: the blocks of the prompt.
        continues: whether the prompt continues one that was sent.
        random: returns a number from 0 up to 1, to choose among equals.
    """
    total = sum(weights)
    load = sum(loads) + 1.0
    recent = sum(requests) + _PRIOR
    tolerance = _CONTINUED if continues else _BRANCH
    best = max(matched)
    is_new = best < is_known(blocks)
    # pressures of the servers that take the request as it is; and of those that have less than their part
    holding: dict[int, float] = {}
    relieving: dict[int, float] = {}
    pressures: list[float] = []
    for index, weight in enumerate(weights):
        part = weight / total
        here = loads[index] + 1.0
        even = load * part
        # over 1.0: it was given more than its part
        given = (requests[index] + _PRIOR * part) / (recent * part)
        pressure = (here + requests[index] + _EXPECTED * fresh[index]) / part if is_new else here / even + given
        pressures.append(pressure)
        if here <= even + 1.0:
            if given <= 1.0:
                relieving[index] = pressure
        elif given > 1.0 + tolerance * (1.0 - part) or here > most_load(load, part):
            continue
        if is_new or matched[index] == best:
            holding[index] = pressure
    if not holding:
        if relieving:
            most = max([matched[index] for index in relieving])
            holding = {index: pressure for index, pressure in relieving.items() if matched[index] == most}
        else:
            holding = dict(enumerate(pressures))
    least = min(holding.values())
    among = [index for index, pressure in holding.items() if pressure == least]
    return among[0] if len(among) == 1 else among[int(random() * len(among))]
