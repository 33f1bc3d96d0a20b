"""Compares all that a ledger's rows add up to with the rows themselves, in either database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from operator import add
from typing import Any

from tests.storage.usage_contract import Ledger, check_spend, check_sums, expected_sums, grouped, stored_sums
from twisted_vllm.storage.usage.tables import usage, usage_marks, usage_payers, usage_targets
from twisted_vllm.usage.records import Payer, Target, UsageRow, refer

#: what NULL means in the columns of a row
_EMPTY: dict[str, Any] = {
    "request_id": "",
    "error": "",
    "requests": 1,
    "attempts": "",
    "request_tags": (),
    "spend_metadata": "",
    "response_id": "",
}


def rows_of(ledger: Ledger) -> list[UsageRow]:
    """Return the rows that a database has, as the gateway made them."""
    payers = {
        each.pop("id"): refer(Payer(**each | {"tags": tuple(each["tags"])})) for each in ledger.read(usage_payers)
    }
    targets = {
        each.pop("id"): refer(Target(**each | {"prices": tuple(each["prices"].items())}))
        for each in ledger.read(usage_targets)
    }
    rows = []
    for each in ledger.read(usage):
        values = {name: value for name, value in each.items() if value is not None or name not in _EMPTY}
        values["payer"], values["target"] = payers[each["payer"]], targets[each["target"]]
        values["request_tags"] = tuple(each["request_tags"] or ())
        rows.append(UsageRow(**values))
    return rows


@contextmanager
def opened(url: str) -> Iterator[Ledger]:
    """Open the ledger of a database that has the present schema."""
    ledger = Ledger(url)
    try:
        yield ledger
    finally:
        ledger.close()


def check_ledger(url: str, *, is_stopped: bool = True) -> list[UsageRow]:
    """Compare every sum, name, look-up and spend of a database with its rows, and return these.

    Args:
        url: of the database. All names have sums of their own in it, and no spend was set.
        is_stopped: whether all who wrote have stopped in order, so that no mark is left.
    """
    with opened(url) as ledger:
        rows = rows_of(ledger)
        check_sums(ledger, rows)
        if is_stopped:
            assert ledger.read(usage_marks) == []
        return rows


def check_totals(url: str) -> list[UsageRow]:
    """Compare the sums of a database in which some names are together in ``(other)`` with its rows; return these."""
    with opened(url) as ledger:
        rows = rows_of(ledger)
        stored, expected = defaultdict[Any, list[tuple[int, ...]]](list), defaultdict[Any, list[tuple[int, ...]]](list)
        for (kind, start, _, model), sums in stored_sums(ledger).items():
            stored[kind, start, model].append(sums)
        for (kind, start, _, model), members in grouped(rows).items():
            expected[kind, start, model].append(expected_sums(members))
        assert {key: _together(each) for key, each in stored.items()} == {
            key: _together(each) for key, each in expected.items()
        }
        check_spend(ledger, rows)
        return rows


def _together(sums: list[tuple[int, ...]]) -> tuple[int, ...]:
    total = sums[0]
    for each in sums[1:]:
        total = tuple(map(add, total, each))
    return total
