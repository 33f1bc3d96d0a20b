"""LiteLLM's ``default_…`` settings: read by its names, and refused where they cannot be kept."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config.new_records import NO_DEFAULTS, DefaultMembership


def test_defaults_load_by_litellms_names(load_text: Loader) -> None:
    found = load_text(
        """
        litellm_settings:
          default_key_generate_params: {max_budget: 1.5, duration: 30d, models: [a], metadata: {a: [1]}}
          default_internal_user_params:
            user_role: internal_user_viewer
            teams: [x, {team_id: y, max_budget_in_team: 2, user_role: admin}]
          max_internal_user_budget: 3
          internal_user_budget_duration: 1mo
          default_team_params: {rpm_limit: 5}
        """,
        BASE,
    ).record_defaults
    assert (found.keys.max_budget, found.keys.duration, found.keys.models) == (Decimal("1.5"), "30d", ("a",))
    assert found.keys.metadata == {"a": [1]}
    assert found.users.user_role == "internal_user_viewer"
    assert found.users.teams == (DefaultMembership("x"), DefaultMembership("y", "admin", Decimal(2)))
    assert (found.user_budget, found.user_budget_duration, found.teams.rpm_limit) == (Decimal(3), "1mo", 5)


@pytest.mark.parametrize("nothing", ["null", "{}"])
def test_nothing_means_no_defaults(load_text: Loader, nothing: str) -> None:
    names = ("default_key_generate_params", "default_internal_user_params", "default_team_params")
    text = "".join(f"  {name}: {nothing}\n" for name in names)
    assert load_text(f"litellm_settings:\n{text}", BASE).record_defaults == NO_DEFAULTS


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "default_key_generate_params: {duration: soon}",
            "default_key_generate_params.duration: must be a whole number",
        ),
        ("default_key_generate_params: {metadata: [1]}", "default_key_generate_params.metadata: must be a mapping"),
        ("default_key_generate_params: {guardrails: [a]}", "default_key_generate_params.guardrails: is not a known"),
        ("default_internal_user_params: {user_role: king}", "default_internal_user_params.user_role: "),
        ("default_internal_user_params: {teams: [{team: x}]}", "default_internal_user_params.teams[0]: must have a"),
        ("default_team_params: {team_member_permissions: [a]}", "default_team_params.team_member_permissions: is not"),
    ],
)
def test_what_cannot_be_kept_is_refused(problems_of: Refusal, text: str, line: str) -> None:
    [problem] = problems_of(f"litellm_settings: {{{text}}}")
    assert problem.startswith(f"litellm_settings.{line}")
