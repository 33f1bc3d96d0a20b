"""The templates of the pages, and how they write numbers, money and times."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from math import floor, log10
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined

_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
#: what stands in place of a value that is not known
NOTHING = "\u2013"


def money(value: Any) -> str:
    """Return an amount of US dollars: ``$12.34``, and more digits where it is small."""
    if _is_nothing(value):
        return NOTHING
    amount = float(value)
    if amount == 0 or abs(amount) >= 1:
        return f"${amount:,.2f}"
    if abs(amount) >= 0.01:
        return f"${amount:,.4f}"
    # three digits, and never as 1e-05
    return f"${amount:.{min(2 - floor(log10(abs(amount))), 12)}f}".rstrip("0").rstrip(".")


def number(value: Any) -> str:
    """Return a number with separators: ``1,234,567``; with one digit after the point if it is small and has any."""
    if _is_nothing(value):
        return NOTHING
    found = float(value)
    return f"{found:,.0f}" if found.is_integer() or abs(found) >= 100 else f"{found:,.1f}"


def short(value: Any) -> str:
    """Return a number in few characters: ``1.2 M``."""
    if _is_nothing(value):
        return NOTHING
    found = float(value)
    for size, name in _PREFIXES:
        if abs(found) >= size:
            return f"{found / size:.3g} {name}"
    return number(found)


def percent(value: Any) -> str:
    """Return a share of 1 as ``12 %``."""
    return NOTHING if _is_nothing(value) else f"{float(value) * 100:.3g} %"


def size(value: Any) -> str:
    """Return bytes as ``1.5 MiB``."""
    if _is_nothing(value):
        return NOTHING
    for name, unit in _BYTES:
        if abs(float(value)) >= unit:
            return f"{float(value) / unit:.3g} {name}"
    return f"{float(value):.0f} B"


def seconds(value: Any) -> str:
    """Return a length of time: ``850 ms``, ``12.3 s``, ``2 h 5 min``."""
    if _is_nothing(value):
        return NOTHING
    found = float(value)
    if found < 1.0:
        return f"{found * 1000:.3g} ms"
    if found < 60.0:
        return f"{found:.3g} s"
    for index, (length, unit) in enumerate(_UNITS):
        if found >= length:
            whole = int(found // length)
            smaller, smaller_unit = _UNITS[index + 1]
            rest = int(found % length // smaller)
            return f"{whole} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return NOTHING


def moment(value: Any) -> str:
    """Return a time as ``2026-03-01 12:00:05`` (UTC)."""
    if _is_nothing(value):
        return NOTHING
    if isinstance(value, int | float):
        found = datetime.fromtimestamp(value, UTC)
    elif isinstance(value, datetime):
        found = value
    else:
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            return str(value)
    return (found.astimezone(UTC) if found.tzinfo else found).strftime("%Y-%m-%d %H:%M:%S")


def _is_nothing(value: Any) -> bool:
    return value is None or value == "" or isinstance(value, Undefined)


@cache
def make_environment() -> Environment:
    """Return the environment of the templates, compiled. The first call reads files, in any thread."""
    environment = Environment(
        loader=PackageLoader("twisted_vllm.admin.web", "templates"),
        # always: what is not marked is text, whatever the file is called
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        # every template stays compiled
        cache_size=-1,
    )
    environment.filters.update(
        money=money, number=number, short=short, percent=percent, size=size, seconds=seconds, moment=moment
    )
    # of all templates: what a template imports at its top, a block that is rendered alone does not see
    environment.globals["ui"] = environment.get_template("macros.html").module
    for name in environment.list_templates():
        environment.get_template(name)
    return environment
