"""Prices by LiteLLM's names, in US dollars, exactly as they were written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

import attrs

from twisted_vllm.config.place import Place, Rejected
from twisted_vllm.config.settings import PriceList
from twisted_vllm.config.shape import Checker, Section, kind, optional

#: US dollars for one token, second or request: more is a slip of the pen
MAX_PRICE = 10_000

_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


def price(value: object, place: Place) -> Decimal:
    """Check for an amount of dollars; a float counts as the shortest decimal that it prints as."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        # YAML 1.1 takes 1e-7 for text, and so do quotes
        found = Decimal(value.strip())
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Rejected(f"must be an amount of US dollars, 0 or more (such as 0.0000005 or 5e-7), not {kind(value)}")
    else:
        found = Decimal(repr(value))
    if not found.is_finite() or found < 0:
        raise Rejected("must be an amount of US dollars, 0 or more (such as 0.0000005 or 5e-7)")
    if found > MAX_PRICE:
        raise Rejected(f"must not be more than {MAX_PRICE} US dollars")
    return found


#: the checker of each price
PRICES: Mapping[str, Checker[Decimal | None]] = {field.name: optional(price) for field in attrs.fields(PriceList)}

price_list: Section[PriceList] = Section(PriceList, PRICES)
