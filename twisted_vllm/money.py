"""Money as whole picodollars: exact sums in memory, in a log line and in any database.

A price per token has up to a dozen digits after the point, which a float does not add up exactly and SQLite cannot keep
as a decimal. An integer of 1e-12 USD does both; 64 bits of it reach nine million dollars for one figure.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

#: picodollars in a dollar
PICODOLLARS = 10**12


def from_dollars(dollars: Decimal | int | float) -> int:
    """Return an amount in picodollars, rounded half to even; a float counts as the shortest decimal that it prints as.

    Raises:
        ValueError: it is not finite.
    """
    exact = Decimal(repr(dollars)) if isinstance(dollars, float) else Decimal(dollars)
    if not exact.is_finite():
        raise ValueError("an amount of money must be finite")
    return int((exact * PICODOLLARS).to_integral_value(ROUND_HALF_EVEN))


def to_dollars(picodollars: int) -> Decimal:
    """Return an amount in dollars, exactly."""
    return Decimal(picodollars).scaleb(-12)


def float_dollars(picodollars: int) -> float:
    """Return an amount in dollars as the nearest float, to be shown: sums of floats are not exact."""
    return picodollars / PICODOLLARS
