"""Reads one batch of the rows of several spools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from twisted_vllm.usage.interfaces import Position
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.follower import SpoolFollower
from twisted_vllm.usage.spool.queue import Batch
from twisted_vllm.usage.spool.writer_threads import BATCH_ROWS


@attrs.frozen
class JointBatch:
    """Rows of several spools on their way to the database.

    Attributes:
        batch: the rows.
        ends: where those of each spool end, by the spool's name.
        size: how many bytes they take in the spools.
    """

    batch: Batch
    ends: Mapping[str, Position]
    size: int


def read_joint(
    spools: Sequence[SpoolFollower], until: Callable[[SpoolFollower], Position | None], turn: int
) -> JointBatch | None:
    """Return the next rows, `BATCH_ROWS` at most; None without any.

    Args:
        spools: where rows come from.
        until: returns up to where a spool is read; None for all that there is.
        turn: counts the calls: another spool is the first each time, so that none has to wait for the others.
    """
    rows: list[UsageRow] = []
    damaged: list[bytes] = []
    ends: dict[str, Position] = {}
    size = 0
    first = turn % len(spools) if spools else 0
    for each in (*spools[first:], *spools[:first]):
        while len(rows) < BATCH_ROWS:
            part = each.read(BATCH_ROWS - len(rows), until(each))
            if part is None:
                break
            rows += part.rows
            damaged += part.damaged
            size += part.size
            ends[each.name] = part.end
    return JointBatch(Batch(rows, damaged, own=False), ends, size) if ends else None
