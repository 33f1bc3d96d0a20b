"""LiteLLM's fields that promise what this gateway does not keep, with LiteLLM's default for each.

A value that asks for nothing (null, false, empty, or the default) is ignored; any other is refused by name. The lists
are LiteLLM 1.108's; ``tests/admin/test_litellm_fields.py`` holds them to be complete.
"""

from __future__ import annotations

from typing import Any

_Fields = dict[str, Any]

#: LiteLLM's word for limits that do not look at each other, which is what limits here are
_BEST_EFFORT = "best_effort_throughput"

_ON_KEYS_AND_USERS: _Fields = {
    "agent_id": None,
    "allowed_cache_controls": [],
    "budget_fallbacks": None,
    "budget_limits": None,
    "config": {},
    "guardrails": None,
    "mcp_rpm_limit": None,
    "object_permission": None,
    "permissions": {},
    "policies": None,
    "prompts": None,
    "tag_rpm_limit": None,
}

#: of requests that make or change a key
ON_KEYS: _Fields = {
    **_ON_KEYS_AND_USERS,
    "access_group_ids": None,
    "allowed_passthrough_routes": None,
    "allowed_vector_store_indexes": None,
    "auto_rotate": False,
    "default_estimated_output_tokens": None,
    "default_estimated_output_tokens_per_model": None,
    "denied_passthrough_routes": None,
    "disable_global_guardrails": None,
    "enable_prompt_caching": None,
    "end_user_budget_id": None,
    "enforced_params": None,
    "project_id": None,
    "rotation_interval": None,
    "router_settings": None,
    "rpm_limit_type": _BEST_EFFORT,
    "send_invite_email": None,
    "temp_budget_expiry": None,
    "temp_budget_increase": None,
    "throttle_on_budget_exceeded": None,
    "tpd_limit": None,
    "tpm_limit_type": _BEST_EFFORT,
}

#: what a report of a key says of them
IN_KEY_REPORTS: _Fields = {
    **{
        name: value
        for name, value in ON_KEYS.items()
        if name not in ("mcp_rpm_limit", "send_invite_email", "temp_budget_expiry", "temp_budget_increase")
        and not name.startswith("default_estimated")
        and name not in ("disable_global_guardrails", "enable_prompt_caching", "throttle_on_budget_exceeded")
    },
    "rpm_limit_type": None,
    "tpm_limit_type": None,
}

#: of requests that make or change a user
ON_USERS: _Fields = {
    **_ON_KEYS_AND_USERS,
    "blocked": None,
    "password": None,
}

#: of requests that make a user
ON_NEW_USERS: _Fields = {**ON_USERS, "send_invite_email": None, "sso_user_id": None}

#: of requests that change a user; the first are a key's, which a change of a user does not have
ON_CHANGED_USERS: _Fields = {**ON_USERS, "aliases": {}, "duration": None, "key_alias": None, "team_id": None}

#: of requests that make or change a team
ON_TEAMS: _Fields = {
    "access_group_ids": None,
    "admins": [],
    "allowed_passthrough_routes": None,
    "allowed_vector_store_indexes": None,
    "budget_limits": None,
    "default_estimated_output_tokens": None,
    "default_estimated_output_tokens_per_model": None,
    "default_team_member_models": None,
    "denied_passthrough_routes": None,
    "disable_global_guardrails": None,
    "enforced_batch_output_expires_after": None,
    "enforced_file_expires_after": None,
    "guardrails": None,
    "mcp_rpm_limit": None,
    "members": [],
    "object_permission": None,
    "policies": None,
    "prompts": None,
    "require_trace_id": None,
    "router_settings": None,
    "rpm_limit_type": _BEST_EFFORT,
    "secret_manager_settings": None,
    "tags": None,
    "team_member_key_duration": None,
    "team_member_permissions": None,
    "tpd_limit": None,
    "tpm_limit_type": _BEST_EFFORT,
}

#: of requests that make or change a member of a team
ON_MEMBERS: _Fields = dict.fromkeys(("allowed_models", "temp_budget_expiry", "temp_budget_increase"))

#: of requests that make or change a member of an organization
ON_ORGANIZATION_MEMBERS: _Fields = {"max_budget_in_organization": None}

#: of requests that make or change a customer
ON_CUSTOMERS: _Fields = dict.fromkeys(
    ("allowed_model_region", "budget_reset_at", "default_model", "models", "object_permission", "tpd_limit")
)

#: of requests that make or change a budget
ON_BUDGETS: _Fields = dict.fromkeys(("budget_reset_at", "tpd_limit"))

#: of requests that make or change an organization
ON_ORGANIZATIONS: _Fields = dict.fromkeys(
    (
        "allowed_models",
        "object_permission",
        "spend",
        "temp_budget_expiry",
        "temp_budget_increase",
        "tpd_limit",
        "updated_by",
    )
)
