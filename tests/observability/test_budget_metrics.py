"""How many budgets are nearly spent."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from twisted_vllm.observability.metrics.budgets import BudgetCollector

NAME = "vllm_passthrough_budgets"


def test_each_kind_has_a_sample_for_each_share_also_before_anything_is_spent() -> None:
    counts: dict[tuple[str, int], int] = {}
    registry = CollectorRegistry()
    registry.register(BudgetCollector(("key", "team"), (80, 90, 100), lambda: counts))

    def samples() -> dict[tuple[str, str], float]:
        found = [sample for family in registry.collect() for sample in family.samples]
        return {(sample.labels["kind"], sample.labels["used"]): sample.value for sample in found}

    shares = ("0.8", "0.9", "1")
    assert samples() == {(kind, used): 0 for kind in ("key", "team") for used in shares}
    counts |= {("key", 80): 3, ("key", 90): 1}
    assert [samples()["key", used] for used in shares] == [3, 1, 0]
    assert registry.get_sample_value(NAME, {"kind": "team", "used": "0.9"}) == 0
