"""Keys, users and teams as LiteLLM shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from twisted_vllm.access.records import KeyRecord
from twisted_vllm.admin.litellm import GENERATE_DEFAULTS

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
