"""Budget periods, aligned to the calendar in UTC as in LiteLLM."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

_DURATION = re.compile(r"([0-9]{1,9})(s|mo|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MONTH = 30 * _SECONDS["d"]
#: the first Monday of 1970, from which whole weeks are counted
_MONDAY = 4 * _SECONDS["d"]


def period_of(duration: str | None, now: float) -> tuple[int, int | None]:
    """Return when the current period of a budget began, and when the next one begins.

    Days begin at midnight. Weeks (``7d``, ``1w`` and whole numbers of weeks) begin on a Monday. ``30d`` and ``1mo``
    begin on the first of a month; several months are counted from January 1970. Any other duration begins at a multiple
    of its length since 1970.

    Args:
        duration: a number and its unit: ``s``, ``m``, ``h``, ``d``, ``w`` or ``mo``. None means one endless period.
        now: Unix seconds.

    Returns:
        The first second of the period and the first one after it, in Unix seconds; 0 and None for an endless period.

    Raises:
        ValueError: `duration` is malformed.
    """
    if duration is None:
        return 0, None
    seconds, months = _length(duration)
    if months:
        today = datetime.fromtimestamp(now, UTC)
        first = ((today.year - 1970) * 12 + today.month - 1) // months * months
        return _month_start(first), _month_start(first + months)
    origin = _MONDAY if seconds % _SECONDS["w"] == 0 else 0
    start = int((now - origin) // seconds) * seconds + origin
    return start, start + seconds


@lru_cache(maxsize=1024)
def _length(duration: str) -> tuple[int, int]:
    """Return a duration in seconds and months, one of which is 0."""
    parts = _DURATION.fullmatch(duration)
    number = int(parts[1]) if parts else 0
    if parts is None or number == 0:
        raise ValueError("a budget's duration must be a number above 0 and a unit, one of s, m, h, d, w and mo")
    if parts[2] == "mo":
        return 0, number
    seconds = number * _SECONDS[parts[2]]
    return (0, 1) if seconds == _MONTH and parts[2] == "d" else (seconds, 0)


def _month_start(months: int) -> int:
    """Return the first second of a month, counted from January 1970; `datetime` ends with the year 9999."""
    year, month = divmod(months, 12)
    return int(datetime(min(1970 + year, 9999), month + 1, 1, tzinfo=UTC).timestamp())
