"""Budgets that are used up: LiteLLM's JSON, and the same for people."""

from __future__ import annotations

import json
from typing import Any

import pytest

from twisted_vllm.observability.alerting.budget_events import Spender, budget_event, budget_text, soft_budget_text
from twisted_vllm.ratelimit.allowance import member_id, model_budget_id

DOLLAR = 10**12
KEY = Spender("key", "1" * 32, "batch", "a" * 64, "ada", "red", "acme")

#: the fields of LiteLLM's WebhookEvent (litellm/types/integrations/slack_alerting.py)
FIELDS = {
    *("spend", "max_budget", "soft_budget", "token", "customer_id", "user_id", "team_id", "team_alias"),
    *("organization_id", "user_email", "key_alias", "projected_exceeded_date", "projected_spend", "event_group"),
    *("alert_emails", "max_budget_alert_emails", "event", "event_message"),
}


def event_of(spender: Spender, **options: Any) -> dict[str, Any]:
    values = {"max_budget": 100 * DOLLAR, "soft_budget": None, "share": 80, **options}
    found: dict[str, Any] = json.loads(budget_event(spender, 80 * DOLLAR, **values))
    assert set(found) == FIELDS
    return found


def test_an_event_of_a_key_has_all_that_litellm_sends() -> None:
    found = event_of(KEY)
    assert {name: value for name, value in found.items() if value is not None} == {
        "spend": 80.0,
        "max_budget": 100.0,
        "token": "a" * 64,
        "user_id": "ada",
        "team_id": "red",
        "organization_id": "acme",
        "key_alias": "batch",
        "event_group": "key",
        "event": "threshold_crossed",
        "event_message": "The key batch of the user ada of the team red: 20% or less of budget remaining",
    }


@pytest.mark.parametrize(
    ("options", "event"),
    [
        ({"share": 90}, "threshold_crossed"),
        ({"share": 100}, "budget_crossed"),
        ({"share": 0, "soft_budget": DOLLAR, "max_budget": None}, "soft_budget_crossed"),
    ],
)
def test_events_have_litellms_names(options: dict[str, Any], event: str) -> None:
    assert event_of(KEY, **options)["event"] == event


@pytest.mark.parametrize(
    ("kind", "id", "group", "ids", "who"),
    [
        ("user", "ada", "user", {"user_id": "ada"}, "The user ada"),
        ("team", "red", "team", {"team_id": "red"}, "The team red"),
        ("organization", "acme", "organization", {"organization_id": "acme"}, "The organization acme"),
        ("end_user", "eve", "end_user", {"customer_id": "eve"}, "The end user eve"),
        ("proxy", "proxy", "proxy", {}, "The whole gateway"),
        (
            *("member", member_id("red", "ada"), "team_member", {"team_id": "red", "user_id": "ada"}),
            "The user ada in the team red",
        ),
        (
            *("model_budget", model_budget_id("team", "red", "llama"), "team", {"team_id": "red"}),
            "The team red for the model llama",
        ),
    ],
)
def test_everybody_with_a_budget_is_named(kind: str, id: str, group: str, ids: dict[str, str], who: str) -> None:
    spender = Spender(kind, id)
    found = event_of(spender)
    assert found["event_group"] == group
    named = ("customer_id", "user_id", "team_id", "organization_id")
    assert {name: found[name] for name in named if found[name] is not None} == ids
    text = budget_text(spender, 80 * DOLLAR, max_budget=100 * DOLLAR, share=80)
    assert text == f"{who} has used 80 % of its budget: 80 USD of 100 USD"


def test_the_model_budget_of_a_key_has_the_keys_name() -> None:
    spender = Spender("model_budget", model_budget_id("key", "1" * 32, "llama"), "batch")
    text = budget_text(spender, 100 * DOLLAR, max_budget=100 * DOLLAR, share=100)
    assert text == "The key batch for the model llama has used all of its budget: 100 USD of 100 USD"


def test_a_soft_budget_is_told_too() -> None:
    assert soft_budget_text(Spender("team", "red"), 12 * DOLLAR, 10 * DOLLAR) == (
        "The team red is over its soft budget: 12 USD, and 10 USD are meant"
    )
