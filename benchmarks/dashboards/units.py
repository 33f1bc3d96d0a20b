"""Figures as Grafana writes them, by its names of units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

_SECONDS = ((1e-6, "µs"), (1e-3, "ms"), (1, "s"), (60, "min"), (3600, "h"), (86_400, "d"), (604_800, "weeks"))
_THOUSANDS = ((1.0, ""), (1e3, "K"), (1e6, "Mil"), (1e9, "Bil"))
_BYTES = ((1, "B"), (1 << 10, "KiB"), (1 << 20, "MiB"), (1 << 30, "GiB"), (1 << 40, "TiB"))
_SUFFIX = "suffix:"
_RATES = {"reqps": "req/s", "cps": "c/s", "ops": "ops/s"}


def figure(value: float, unit: str, decimals: int | None = None, step: float | None = None) -> str:
    """Format a figure.

    Args:
        value: the figure.
        unit: Grafana's name of its unit.
        decimals: digits after the point; None takes what tells enough.
        step: the distance of the ticks of an axis, which takes as many digits as tell them apart.
    """
    if unit == "percentunit":
        return f"{_number(value * 100, decimals, None if step is None else step * 100)}%"
    if unit == "currencyUSD":
        return f"${_scaled(value, _THOUSANDS, decimals, step, '')}"
    if unit == "s":
        return _scaled(value, _SECONDS, decimals, step, " ")
    if unit == "bytes":
        return _scaled(value, _BYTES, decimals, step, " ")
    short = _scaled(value, _THOUSANDS, decimals, step, " ")
    suffix = unit.removeprefix(_SUFFIX).strip() if unit.startswith(_SUFFIX) else _RATES.get(unit, "")
    return f"{short} {suffix}" if suffix else short


def ticks(top: float, unit: str, most: int) -> list[float]:
    """Return round figures from 0 up to at least `top`, `most` at most."""
    top = top or 1.0
    steps = _round_steps(unit)
    raw = top / (most - 1)
    step = next(found for found in steps(raw) if found >= raw * 0.999)
    count = math.ceil(top / step - 1e-9)
    return [step * index for index in range(count + 1)]


def _round_steps(unit: str) -> Callable[[float], Sequence[float]]:
    base = 1024.0 if unit == "bytes" else 10.0

    def steps(raw: float) -> Sequence[float]:
        power = base ** math.floor(math.log(raw, base))
        if unit == "bytes":
            return [power * 2**exponent for exponent in range(11)]
        return [power * factor for factor in (1, 2, 2.5, 5, 10)]

    return steps


def _scaled(
    value: float, scale: Sequence[tuple[float, str]], decimals: int | None, step: float | None, space: str
) -> str:
    if not value:
        name = next((name for size, name in scale if size == 1), "")
        return f"{0:.{decimals or 0}f}{space if name else ''}{name}"
    size, name = scale[0]
    for (_, _), (larger, its_name) in pairwise(scale):
        if abs(value) >= larger * 0.9995:
            size, name = larger, its_name
    shown = _number(value / size, decimals, None if step is None else step / size)
    return f"{shown}{space if name else ''}{name}"


def _number(value: float, decimals: int | None, step: float | None) -> str:
    if decimals is None:
        if step is not None:
            decimals = 0 if step >= 1 and step == round(step) else max(0, math.ceil(-math.log10(step) - 1e-9))
            # a step of 2.5 or 0.25
            decimals += not math.isclose(step * 10**decimals, round(step * 10**decimals), abs_tol=1e-6)
        else:
            decimals = 0 if value == round(value) else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"


#: the widths of letters of Helvetica, in thousandths of the font's size
_NARROW: Mapping[str, int] = {
    **dict.fromkeys("ijl|'.,:;!I ", 270),
    **dict.fromkeys("ft()[]r/-", 320),
    **dict.fromkeys("mwMW%@", 850),
    **dict.fromkeys("ABCDEFGHKNOPQRSTUVXYZ&", 690),
}


def text_width(text: str, size: float) -> float:
    """Estimate how wide a text is, in pixels."""
    return sum(_NARROW.get(letter, 556) for letter in text) * size / 1000
