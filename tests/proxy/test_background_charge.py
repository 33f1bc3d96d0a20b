"""What a background response is charged."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from twisted_vllm.proxy.background_charge import BackgroundWork, charge_of, pack_prices
from twisted_vllm.usage.pricing import Prices
from twisted_vllm.usage.records import Payer, Target, Usage, UsageRow, refer

#: a dollar a token: above 64 bits
PRICES = Prices("m", prompt=10**24, completion=10**24)
BEGAN = 1_764_072_000.0
ROW = UsageRow("0a" * 16, int(BEGAN * 1e6), refer(Payer()), refer(Target()), outcome="completed")


def work(**fields: Any) -> BackgroundWork:
    values: dict[str, Any] = {
        "id": "resp_1",
        "server": "gpu-1:8000",
        "started": BEGAN,
        "model": "m",
        "limited": (("key", "k1"),),
        "key_id": "k1",
        "tokens": 110,
        "cost": 110,
        "prompt_tokens": 10,
        "max_tokens": 100,
        "seen_tokens": 0,
        "confirmed": True,
        "prices": pack_prices(PRICES),
        "row": ROW,
    }
    return BackgroundWork(**{**values, **fields})


def tokens(found: BackgroundWork, status: str, seconds: float) -> int:
    charge = charge_of(found, status, None, BEGAN + seconds, 1024)
    assert charge.usage.estimated
    assert charge.usage.prompt_tokens == 10
    assert charge.cost == charge.usage.total_tokens * 10**12
    return charge.usage.completion_tokens


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("completed", "completed"),
        ("incomplete", "completed"),
        ("cancelled", "client_disconnected"),
        ("failed", "upstream_error"),
    ],
)
def test_what_the_server_reports_is_charged(status: str, outcome: str) -> None:
    used = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
    charge = charge_of(work(), status, used, BEGAN + 1, 1024)
    assert (charge.usage, charge.cost, charge.outcome) == (used, 7 * 10**12, outcome)


@pytest.mark.parametrize("status", ["cancelled", "", "completed"])
def test_without_a_report_it_is_what_was_possible(status: str) -> None:
    assert tokens(work(), status, 60) == 100
    assert tokens(work(), status, 0.0625) == 63
    assert tokens(work(seen_tokens=80), status, 0.0625) == 80


def test_without_a_limit_it_is_by_time() -> None:
    assert tokens(work(max_tokens=None), "cancelled", 0.5) == 501
    assert tokens(work(max_tokens=None), "cancelled", 5) == 1024
    assert tokens(work(max_tokens=None), "cancelled", 60) == 6000
    assert tokens(work(max_tokens=None), "", 43_200) == 32 * 1024


def test_a_failure_costs_nothing() -> None:
    charge = charge_of(work(), "failed", None, BEGAN + 60, 1024)
    assert (charge.usage, charge.cost) == (Usage(), 0)


@pytest.mark.parametrize(
    ("outcome", "prompt"), [("client_disconnected", 10), ("revoked", 10), ("upstream_failed", 0), ("failed", 0)]
)
def test_what_never_reached_the_server_is_a_cut_request(outcome: str, prompt: int) -> None:
    row = msgspec.structs.replace(ROW, outcome=outcome)
    charge = charge_of(work(confirmed=False, row=row), "", None, BEGAN + 60, 1024)
    assert (charge.usage.total_tokens, charge.outcome) == (prompt, outcome)
    assert charge.cost == prompt * 10**12


def test_it_is_the_same_after_a_restart() -> None:
    before = work()
    after = msgspec.json.decode(msgspec.json.encode(before), type=BackgroundWork)
    assert after == before
    assert charge_of(after, "", None, BEGAN + 60, 1024) == charge_of(before, "", None, BEGAN + 60, 1024)
