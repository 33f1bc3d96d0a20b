"""Keys, users, teams and end users as LiteLLM shows them, with what they may use and what they spent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from twisted_vllm.admin.allowances import show_limits, show_use
from twisted_vllm.admin.litellm import GENERATE_DEFAULTS
from twisted_vllm.auth.records import KeyRecord, Spend
from twisted_vllm.ratelimit.allowance import UNLIMITED
from twisted_vllm.storage.records import EndUserRecord, Member, TeamRecord, UserRecord
from twisted_vllm.storage.transaction import Transaction

#: what LiteLLM reports of a key beside what is kept here
_KEY_DEFAULTS = {name: default for name, default in GENERATE_DEFAULTS.items() if name != "send_invite_email"}

#: what its ``litellm_budget_table`` holds
_BUDGET_TABLE = (
    "max_budget",
    "soft_budget",
    "max_parallel_requests",
    "tpm_limit",
    "rpm_limit",
    "budget_duration",
)


def status_of(record: KeyRecord, now: datetime) -> str:
    """Return LiteLLM's word for a key's state: ``active``, ``expired``, or ``revoked`` for a blocked one."""
    if record.blocked:
        return "revoked"
    return "expired" if record.expires is not None and now >= record.expires else "active"


def report_keys(transaction: Transaction, records: Sequence[KeyRecord], now: datetime) -> list[dict[str, Any]]:
    """Return keys as LiteLLM shows them."""
    spend = transaction.spend.of("key", [record.key_id for record in records])
    return [_key(record, spend[record.key_id], now) for record in records]


def report_key(transaction: Transaction, record: KeyRecord, now: datetime) -> dict[str, Any]:
    """Return one key likewise."""
    [found] = report_keys(transaction, [record], now)
    return found


def _key(record: KeyRecord, spend: Spend, now: datetime) -> dict[str, Any]:
    return {
        **_KEY_DEFAULTS,
        **show_use(record.allowance, spend, now),
        "token": record.token,
        "key_name": record.key_name,
        "key_alias": record.key_alias,
        "models": record.models,
        "aliases": record.aliases,
        "allowed_routes": record.allowed_routes,
        "priority": record.priority,
        "granted_headers": record.granted_headers,
        "cache_isolation": record.cache_salt is not None,
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
        **_changes(record),
    }


def report_users(transaction: Transaction, users: Sequence[UserRecord], now: datetime) -> list[dict[str, Any]]:
    """Return users as LiteLLM shows them, with the ids of their teams."""
    ids = [user.user_id for user in users]
    spend, memberships = transaction.spend.of("user", ids), transaction.members.of_users(ids)
    return [
        {
            **show_use(user.allowance, spend[user.user_id], now),
            "user_id": user.user_id,
            "user_alias": user.user_alias,
            "user_email": user.user_email,
            "user_role": user.user_role,
            "models": user.models,
            "metadata": user.metadata,
            "teams": [member.team_id for member in memberships[user.user_id]],
            **_changes(user),
        }
        for user in users
    ]


def report_user(transaction: Transaction, user: UserRecord, now: datetime) -> dict[str, Any]:
    """Return one user likewise."""
    [found] = report_users(transaction, [user], now)
    return found


def report_teams(transaction: Transaction, teams: Sequence[TeamRecord], now: datetime) -> list[dict[str, Any]]:
    """Return teams as LiteLLM shows them, with their members."""
    ids = [team.team_id for team in teams]
    spend, members = transaction.spend.of("team", ids), transaction.members.of_teams(ids)
    return [
        {
            **show_use(team.allowance, spend[team.team_id], now),
            "team_id": team.team_id,
            "team_alias": team.team_alias,
            "organization_id": None,
            "models": team.models,
            "blocked": team.blocked,
            "metadata": team.metadata,
            "members_with_roles": [
                {"role": member.role, "user_id": member.user_id, "user_email": None} for member in members[team.team_id]
            ],
            **_changes(team),
        }
        for team in teams
    ]


def report_team(transaction: Transaction, team: TeamRecord, now: datetime) -> dict[str, Any]:
    """Return one team likewise."""
    [found] = report_teams(transaction, [team], now)
    return found


def report_member(member: Member) -> dict[str, Any]:
    """Return a membership as LiteLLM shows it."""
    return {"user_id": member.user_id, "team_id": member.team_id, "budget_id": None, "litellm_budget_table": None}


def report_end_users(transaction: Transaction, records: Sequence[EndUserRecord], now: datetime) -> list[dict[str, Any]]:
    """Return end users as LiteLLM shows its customers."""
    spend = transaction.spend.of("end_user", [record.user_id for record in records])
    return [{**_end_user(record.user_id, record, spend[record.user_id], now), **_changes(record)} for record in records]


def report_unmade_end_user(spend: Spend, now: datetime) -> dict[str, Any]:
    """Return an end user likewise that spent something, and that no administrator made."""
    changes = dict.fromkeys(("created_at", "created_by", "updated_at", "updated_by"))
    return {**_end_user(spend.id, None, spend, now), **changes}


def _end_user(user_id: str, record: EndUserRecord | None, spend: Spend, now: datetime) -> dict[str, Any]:
    allowance = UNLIMITED if record is None else record.allowance
    limits = show_limits(allowance)
    return {
        **show_use(allowance, spend, now),
        "user_id": user_id,
        "alias": None if record is None else record.alias,
        "blocked": record is not None and record.blocked,
        "allowed_model_region": None,
        "default_model": None,
        "budget_id": None,
        "litellm_budget_table": None if allowance.is_unlimited else {name: limits[name] for name in _BUDGET_TABLE},
    }


def _changes(record: KeyRecord | UserRecord | TeamRecord | EndUserRecord) -> dict[str, Any]:
    return {
        "created_at": record.created_at,
        "created_by": record.created_by,
        "updated_at": record.updated_at,
        "updated_by": record.updated_by,
    }
