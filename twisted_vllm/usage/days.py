"""Days as the ledger counts them: whole days since 1970, in UTC."""

from __future__ import annotations

from datetime import date, timedelta

#: microseconds of a day
DAY_US = 86_400_000_000

_EPOCH = date(1970, 1, 1)


def date_of(day: int) -> date:
    """Return the date of a day."""
    return _EPOCH + timedelta(days=day)


def number_of(found: date) -> int:
    """Return the day of a date."""
    return (found - _EPOCH).days
