"""Spans of time and amounts as one says them."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0))


def duration(seconds: float) -> str:
    """Return a span of time: ``3 days``, ``2 hours``, ``5 minutes``, ``40 seconds``."""
    for unit, length in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def moment(seconds: float) -> str:
    """Return a moment in UTC, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def dollars(amount: float) -> str:
    """Return an amount of money."""
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.4g}"
