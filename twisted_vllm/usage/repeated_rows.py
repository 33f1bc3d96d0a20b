"""Joins the rows of requests that cost nothing: one row for what repeats, with the number of requests."""

from __future__ import annotations

from collections import Counter

import msgspec

from twisted_vllm.usage.records import UsageRow

#: rows of one payer that are written at once, in each round
SINGLE_ROWS = 10
#: rows that are held; more are written at once
MAX_HELD = 10_000
#: joined rows began in the same hour (UTC), in microseconds: no interval of a report is shorter
_HOUR_US = 3_600_000_000


class _Held:
    """A row that more requests join.

    Attributes:
        row: the row of the first.
        requests: how many there are; likewise the sums of the times and sizes.
    """

    __slots__ = ("bytes_in", "bytes_out", "requests", "row", "total_us")

    def __init__(self, row: UsageRow) -> None:
        self.row = row
        self.requests = self.total_us = self.bytes_in = self.bytes_out = 0


class RepeatedRows:
    """Holds rows that differ only in what is added up.

    In each round the first `SINGLE_ROWS` rows of a payer are written at once. The next ones are held, one for each
    target, status, outcome, error, failed attempts, end user, tags, metadata and recorded headers, until the round
    ends.
    """

    def __init__(self) -> None:
        """Begin the first round."""
        self._singles: Counter[bytes] = Counter()
        self._held: dict[tuple[object, ...], _Held] = {}

    def __len__(self) -> int:
        """Return the number of held rows."""
        return len(self._held)

    def add(self, row: UsageRow) -> UsageRow | None:
        """Take a row without tokens and cost; return it if it is to be written now, else None."""
        payer = bytes(row.payer)
        self._singles[payer] += 1
        if self._singles[payer] <= SINGLE_ROWS:
            return row
        headers = None if row.headers is None else tuple(row.headers.items())
        hour = row.time // _HOUR_US
        ending = (row.status, row.outcome, row.error, row.attempts)
        said = (row.request_tags, row.spend_metadata)
        key = (payer, bytes(row.target), ending, row.end_user, headers, said, row.stream, hour)
        held = self._held.get(key)
        if held is None:
            if len(self._held) >= MAX_HELD:
                return row
            held = self._held[key] = _Held(row)
        held.requests += 1
        held.total_us += row.total_us
        held.bytes_in += row.bytes_in
        held.bytes_out += row.bytes_out
        return None

    def end_round(self) -> list[UsageRow]:
        """Return the held rows, to be written now, and begin the next round."""
        held, self._held = self._held, {}
        self._singles.clear()
        return [_joined(each) for each in held.values()]


def _joined(held: _Held) -> UsageRow:
    if held.requests == 1:
        return held.row
    return msgspec.structs.replace(
        held.row,
        request_id="",
        response_id="",
        details="",
        first_byte_us=None,
        total_us=held.total_us,
        bytes_in=held.bytes_in,
        bytes_out=held.bytes_out,
        requests=held.requests,
    )
