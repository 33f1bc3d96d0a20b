"""LiteLLM's way to write how long a key works: ``30s``, ``15m``, ``12h``, ``7d``, ``2w``, ``1mo``."""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import datetime, timedelta

from twisted_vllm.errors import InvalidRequest

_DURATION = re.compile(r"([0-9]{1,9})(s|mo|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def expiry_of(duration: str | int | None, now: datetime, name: str = "duration") -> datetime | None:
    """Return when something that starts now is over.

    A month is a calendar month: 31 January and ``1mo`` is the last day of February.

    Args:
        duration: a number and its unit; ``None`` and -1 are never.
        now: the present moment, with a time zone.
        name: what messages call it.

    Raises:
        InvalidRequest: it is not a duration, or ends before it starts, or after the year 9999.
    """
    if duration is None or duration in (-1, "-1"):
        return None
    parts = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if parts is None:
        raise InvalidRequest(
            f"`{name}` must be a number and a unit, one of s, m, h, d, w and mo (as in 30d), or null for never.",
            param=name,
        )
    number, unit = int(parts[1]), parts[2]
    if number == 0:
        raise InvalidRequest(f"`{name}` must not be zero: such a key would never work.", param=name)
    try:
        return _in_months(now, number) if unit == "mo" else now + timedelta(seconds=number * _SECONDS[unit])
    except (OverflowError, ValueError):
        raise InvalidRequest(f"`{name}` ends after the year 9999. Send null for never.", param=name) from None


def _in_months(now: datetime, months: int) -> datetime:
    years, month = divmod(now.month - 1 + months, 12)
    year = now.year + years
    if year > 9999:
        raise OverflowError
    return now.replace(year=year, month=month + 1, day=min(now.day, monthrange(year, month + 1)[1]))
