"""LiteLLM's tables as far as the import reads them, in our own words, as of two versions; the rows are invented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tests.litellm_import.rows import token_of

_LIMITS = "max_budget float8, max_parallel_requests int4, tpm_limit int8, rpm_limit int8, budget_duration text"
_STAMPS = "created_at timestamp DEFAULT now(), created_by text, updated_at timestamp DEFAULT now(), updated_by text"

#: the columns of each table in LiteLLM 1.80
OLD = {
    "VerificationToken": (
        "token text PRIMARY KEY, key_name text, key_alias text, spend float8 NOT NULL DEFAULT 0, expires timestamp, "
        "models text[], aliases jsonb DEFAULT '{}', config jsonb DEFAULT '{}', user_id text, team_id text, "
        "permissions jsonb DEFAULT '{}', metadata jsonb DEFAULT '{}', blocked bool, budget_reset_at timestamp, "
        "allowed_cache_controls text[] DEFAULT '{}', allowed_routes text[] DEFAULT '{}', model_spend jsonb, "
        "model_max_budget jsonb DEFAULT '{}', budget_id text, organization_id text, object_permission_id text, "
        f"project_id text, {_LIMITS}, {_STAMPS}"
    ),
    "UserTable": (
        "user_id text PRIMARY KEY, user_alias text, team_id text, organization_id text, password text, teams text[], "
        "user_role text, spend float8 NOT NULL DEFAULT 0, user_email text, models text[], metadata jsonb DEFAULT '{}', "
        f"budget_reset_at timestamp, model_max_budget jsonb DEFAULT '{{}}', {_LIMITS}, {_STAMPS}"
    ),
    "TeamTable": (
        "team_id text PRIMARY KEY, team_alias text, organization_id text, admins text[], members text[], "
        "members_with_roles jsonb DEFAULT '{}', metadata jsonb DEFAULT '{}', spend float8 NOT NULL DEFAULT 0, "
        "models text[], budget_reset_at timestamp, blocked bool DEFAULT false, model_id int4, "
        f"team_member_permissions text[] DEFAULT '{{}}', {_LIMITS}, {_STAMPS}"
    ),
    "TeamMembership": (
        "user_id text, team_id text, spend float8 NOT NULL DEFAULT 0, budget_id text, PRIMARY KEY (user_id, team_id)"
    ),
    "EndUserTable": (
        "user_id text PRIMARY KEY, alias text, spend float8 NOT NULL DEFAULT 0, allowed_model_region text, "
        "default_model text, budget_id text, blocked bool DEFAULT false"
    ),
    "BudgetTable": (
        "budget_id text PRIMARY KEY, soft_budget float8, model_max_budget jsonb, budget_reset_at timestamp, "
        f"{_LIMITS}, {_STAMPS}"
    ),
    "OrganizationTable": (
        "organization_id text PRIMARY KEY, organization_alias text, budget_id text, metadata jsonb DEFAULT '{}', "
        f"models text[], spend float8 NOT NULL DEFAULT 0, object_permission_id text, {_STAMPS}"
    ),
    "OrganizationMembership": (
        "user_id text, organization_id text, user_role text, spend float8 DEFAULT 0, budget_id text, "
        "PRIMARY KEY (user_id, organization_id)"
    ),
    "ModelTable": f"id int4 PRIMARY KEY, aliases jsonb, {_STAMPS}",
}

#: what LiteLLM 1.108 added
_ADDED = {
    "VerificationToken": (
        "total_spend float8 DEFAULT 0, tpd_limit int8, policies text[] DEFAULT '{}', agent_id text, key_type text, "
        "access_group_ids text[] DEFAULT '{}', budget_limits jsonb, budget_fallbacks jsonb DEFAULT '{}', "
        "router_settings jsonb DEFAULT '{}', last_active timestamp"
    ),
    "TeamTable": (
        "soft_budget float8, tpd_limit int8, policies text[] DEFAULT '{}', access_group_ids text[] DEFAULT '{}', "
        "budget_limits jsonb, default_team_member_models text[] DEFAULT '{}'"
    ),
    "UserTable": "policies text[] DEFAULT '{}', password_reset_required bool",
    "EndUserTable": "models text[] DEFAULT '{}', object_permission_id text",
    "BudgetTable": "tpd_limit int8, allowed_models text[] DEFAULT '{}', temp_budget_increase float8",
    "TeamMembership": "total_spend float8 DEFAULT 0",
}
NEW = {
    **{name: f"{columns}, {_ADDED[name]}" if name in _ADDED else columns for name, columns in OLD.items()},
    "AccessGroupTable": "access_group_id text PRIMARY KEY, access_model_names text[] DEFAULT '{}'",
    "DeprecatedVerificationToken": "token text, active_token_id text, revoke_at timestamp",
    "ProxyModelTable": "model_id text PRIMARY KEY",
}

#: a master key's owner's password, which no import may show
PASSWORD = "a-password-hash-of-litellm"

ROWS: Mapping[str, list[dict[str, Any]]] = {
    "BudgetTable": [{"budget_id": "small", "max_budget": 5.0, "budget_duration": "30d"}],
    "OrganizationTable": [
        {"organization_id": "org", "organization_alias": "Org", "budget_id": "small", "models": ["qwen"], "spend": 2.0}
    ],
    "OrganizationMembership": [{"user_id": "ada", "organization_id": "org", "user_role": "org_admin"}],
    "UserTable": [
        {"user_id": "ada", "user_email": "Ada@Example.org", "password": PASSWORD, "models": [], "spend": 1.5}
    ],
    "TeamTable": [
        {
            "team_id": "blue",
            "team_alias": "Blue",
            "organization_id": "org",
            "models": ["qwen"],
            "members_with_roles": Jsonb([{"user_id": "ada", "role": "admin"}]),
            "rpm_limit": 60,
        }
    ],
    "TeamMembership": [{"user_id": "ada", "team_id": "blue", "budget_id": "small", "spend": 0.25}],
    "EndUserTable": [{"user_id": "eve", "budget_id": "small"}, {"user_id": "mallory", "blocked": True}],
    "VerificationToken": [
        {
            "token": token_of("sk-of-the-blue-team"),
            "key_name": "sk-...team",
            "key_alias": "blue key",
            "user_id": "ada",
            "team_id": "blue",
            "models": ["all-team-models"],
            "spend": 0.5,
        },
        {
            "token": token_of("sk-with-a-guardrail"),
            "key_name": "sk-...rail",
            "key_alias": "guarded",
            "models": [],
            "metadata": Jsonb({"guardrails": ["pii"]}),
        },
    ],
}


def fill(url: str, tables: Mapping[str, str]) -> None:
    """Make LiteLLM's tables in an empty database, and fill them."""
    with psycopg.connect(url) as connection:
        for name, columns in tables.items():
            connection.execute(f'CREATE TABLE "LiteLLM_{name}" ({columns})'.encode())
        for name, rows in ROWS.items():
            for row in rows:
                columns = ", ".join(row)
                places = ", ".join(["%s"] * len(row))
                connection.execute(
                    f'INSERT INTO "LiteLLM_{name}" ({columns}) VALUES ({places})'.encode(), list(row.values())
                )
