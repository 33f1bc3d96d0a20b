"""Keys, users and teams as LiteLLM shows them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from twisted_vllm.access.records import KeyRecord
from twisted_vllm.admin.litellm import GENERATE_DEFAULTS
from twisted_vllm.store.records import Member, TeamRecord, UserRecord

#: what LiteLLM reports of a key beside what is kept here
_KEY_DEFAULTS = {
    name: default for name, default in GENERATE_DEFAULTS.items() if name not in ("key_type", "send_invite_email")
}


def status_of(record: KeyRecord, now: datetime) -> str:
    """Return LiteLLM's word for a key's state: ``active``, ``expired``, or ``revoked`` for a blocked one."""
    if record.blocked:
        return "revoked"
    return "expired" if record.expires is not None and now >= record.expires else "active"


def report_key(record: KeyRecord, now: datetime) -> dict[str, Any]:
    """Return a key as LiteLLM shows it."""
    return {
        **_KEY_DEFAULTS,
        "token": record.token,
        "key_name": record.key_name,
        "key_alias": record.key_alias,
        "models": record.models,
        "aliases": record.aliases,
        "allowed_routes": record.allowed_routes,
        "priority": record.priority,
        "granted_headers": record.granted_headers,
        "blocked": record.blocked,
        "status": status_of(record, now),
        "expires": record.expires,
        "metadata": record.metadata,
        "tags": record.tags,
        "user_id": record.user_id,
        "team_id": record.team_id,
        "litellm_budget_table": None,
        "rotation_count": record.rotation_count,
        "last_rotation_at": record.last_rotation_at,
        "created_at": record.created_at,
        "created_by": record.created_by,
        "updated_at": record.updated_at,
        "updated_by": record.updated_by,
    }


_PEOPLE_DEFAULTS = {
    "spend": 0.0,
    **dict.fromkeys(("max_budget", "budget_duration", "budget_reset_at", "tpm_limit", "rpm_limit")),
    "max_parallel_requests": None,
}


def report_user(user: UserRecord, teams: Sequence[str]) -> dict[str, Any]:
    """Return a user as LiteLLM shows it.

    Args:
        user: the user.
        teams: the ids of its teams.
    """
    return {
        **_PEOPLE_DEFAULTS,
        "user_id": user.user_id,
        "user_alias": user.user_alias,
        "user_email": user.user_email,
        "user_role": user.user_role,
        "models": user.models,
        "metadata": user.metadata,
        "teams": teams,
        **_changes(user),
    }


def report_team(team: TeamRecord, members: Sequence[Member]) -> dict[str, Any]:
    """Return a team as LiteLLM shows it."""
    return {
        **_PEOPLE_DEFAULTS,
        "team_id": team.team_id,
        "team_alias": team.team_alias,
        "organization_id": None,
        "models": team.models,
        "blocked": team.blocked,
        "metadata": team.metadata,
        "members_with_roles": [
            {"role": member.role, "user_id": member.user_id, "user_email": None} for member in members
        ],
        **_changes(team),
    }


def _changes(record: UserRecord | TeamRecord) -> dict[str, Any]:
    return {
        "created_at": record.created_at,
        "created_by": record.created_by,
        "updated_at": record.updated_at,
        "updated_by": record.updated_by,
    }
