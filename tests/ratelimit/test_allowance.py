"""Limits that are shared, and budgets for one model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.ratelimit.allowance import (
    MODEL_BUDGET,
    UNLIMITED,
    Allowance,
    ModelBudget,
    budgets_of,
    model_budget_id,
)

COUNTS = st.none() | st.integers(0, 9)
MODELS = st.dictionaries(st.sampled_from("ab"), st.integers(0, 9))
ALLOWANCES = st.builds(
    Allowance,
    rpm=COUNTS,
    tpm=COUNTS,
    parallel=COUNTS,
    model_rpm=MODELS,
    model_tpm=MODELS,
    max_budget=COUNTS,
    soft_budget=COUNTS,
    budget_duration=st.sampled_from([None, "1d", "1mo"]),
    model_budgets=st.dictionaries(st.sampled_from("ab"), st.builds(ModelBudget, st.integers(0, 9))),
)


@given(ALLOWANCES)
def test_who_names_no_budget_keeps_its_limits_and_who_has_none_gets_those_of_the_budget(allowance: Allowance) -> None:
    assert allowance.within(UNLIMITED) == allowance
    assert UNLIMITED.within(allowance) == allowance


@given(ALLOWANCES, ALLOWANCES)
def test_no_limit_of_either_is_lost(own: Allowance, shared: Allowance) -> None:
    both = own.within(shared)
    for name in ("rpm", "tpm", "parallel", "max_budget", "soft_budget"):
        mine = getattr(own, name)
        assert getattr(both, name) == (getattr(shared, name) if mine is None else mine)
    for name in ("model_rpm", "model_tpm", "model_budgets"):
        assert getattr(both, name) == getattr(shared, name) | getattr(own, name)


def test_the_period_of_a_shared_budget_does_not_reset_a_budget_of_ones_own() -> None:
    shared = Allowance(max_budget=5, budget_duration="1d")
    assert Allowance(max_budget=7).within(shared).budget_duration is None
    assert Allowance(rpm=1).within(shared) == Allowance(rpm=1, max_budget=5, budget_duration="1d")


def test_each_budget_is_named() -> None:
    assert budgets_of("key", "k", Allowance(rpm=1)) == []
    allowance = Allowance(max_budget=1, model_budgets={"m": ModelBudget(2)})
    assert budgets_of("key", "k", allowance) == [("key", "k"), (MODEL_BUDGET, model_budget_id("key", "k", "m"))]


def test_the_model_and_the_cost_of_a_request_must_be_known_for_the_budget_of_a_model() -> None:
    allowance = Allowance(model_budgets={"m": ModelBudget(2)})
    assert allowance.counts_models and allowance.counts_tokens
    assert allowance.limits_model("m") and not allowance.limits_model("n")
