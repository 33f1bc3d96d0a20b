"""Where the ledger's rows are: what a row is known by."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, tuple_

from twisted_vllm.storage.usage.tables import usage

#: a row's time and its id
Place = tuple[int, str]


def at_places(places: Sequence[Place]) -> list[ColumnElement[bool]]:
    """Return what holds of the rows at some places."""
    # the times alone say nothing more, but SQLite looks by them and would not by both
    times = usage.c.time.in_({time for time, _ in places})
    return [times, tuple_(usage.c.time, usage.c.id).in_(places)]
