"""What LiteLLM 1.106 knows of a key and this gateway lacks: taken where it asks for nothing, else refused by name.

A limit that is taken and not kept would be worse than an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from twisted_vllm.errors import InvalidRequest

#: fields of ``/key/generate`` that are not done here, and the value that LiteLLM gives each where it is left out
GENERATE_DEFAULTS: dict[str, Any] = {
    "config": {},
    "permissions": {},
    "agent_id": None,
    "organization_id": None,
    "project_id": None,
    "spend": 0.0,
    "max_budget": None,
    "soft_budget": None,
    "budget_id": None,
    "budget_duration": None,
    "budget_limits": None,
    "model_max_budget": {},
    "budget_fallbacks": None,
    "tpm_limit": None,
    "rpm_limit": None,
    "tpd_limit": None,
    "max_parallel_requests": None,
    "model_rpm_limit": None,
    "model_tpm_limit": None,
    "tag_rpm_limit": None,
    "rpm_limit_type": None,
    "tpm_limit_type": None,
    "key_type": "default",
    "allowed_passthrough_routes": None,
    "denied_passthrough_routes": None,
    "allowed_cache_controls": [],
    "guardrails": None,
    "policies": None,
    "prompts": None,
    "enforced_params": None,
    "end_user_budget_id": None,
    "auto_rotate": False,
    "rotation_interval": None,
    "router_settings": None,
    "access_group_ids": None,
    "object_permission": None,
    "allowed_vector_store_indexes": None,
    "send_invite_email": None,
}

#: fields of ``/key/update`` likewise
UPDATE_DEFAULTS: dict[str, Any] = {**GENERATE_DEFAULTS, "temp_budget_increase": None, "temp_budget_expiry": None}

#: fields of ``/key/regenerate`` likewise
REGENERATE_DEFAULTS: dict[str, Any] = {**GENERATE_DEFAULTS, "new_master_key": None}

_COMMON = ("max_budget", "soft_budget", "budget_duration", "budget_limits", "tpm_limit", "rpm_limit", "tpd_limit")

#: fields of ``/user/new`` and ``/user/update`` likewise
USER_DEFAULTS: dict[str, Any] = {
    **{name: GENERATE_DEFAULTS[name] for name in GENERATE_DEFAULTS if name not in ("config", "key_type")},
    "organizations": None,
    "password": None,
    "sso_user_id": None,
}

#: fields of ``/team/new`` and ``/team/update`` likewise
TEAM_DEFAULTS: dict[str, Any] = {
    **{name: GENERATE_DEFAULTS[name] for name in (*_COMMON, "budget_id", "max_parallel_requests", "router_settings")},
    **{name: GENERATE_DEFAULTS[name] for name in ("model_rpm_limit", "model_tpm_limit", "rpm_limit_type")},
    **{name: GENERATE_DEFAULTS[name] for name in ("tpm_limit_type", "guardrails", "policies", "object_permission")},
    "organization_id": None,
    "admins": [],
    "members": [],
    "model_aliases": None,
    "tags": None,
    "team_member_budget": None,
    "team_member_rpm_limit": None,
    "team_member_tpm_limit": None,
    "team_member_key_duration": None,
    "team_member_permissions": None,
    "access_group_ids": None,
}

#: parameters of ``/key/list`` that are not done here
LIST_DEFAULTS: dict[str, Any] = {
    "organization_id": None,
    "project_id": None,
    "agent_id": None,
    "access_group_id": None,
    "expand": None,
    "include_team_keys": "false",
    "include_created_by_keys": "false",
}

#: parameters of ``/user/list`` likewise
USER_LIST_DEFAULTS: dict[str, Any] = dict.fromkeys(("user_ids", "sso_user_ids", "team", "organization_ids"))

_SHOWN = 40


def refuse_what_is_not_done(given: Mapping[str, Any], supported: Iterable[str], defaults: Mapping[str, Any]) -> None:
    """Check the names of what a caller sent.

    Args:
        given: what was sent.
        supported: the names that mean something here.
        defaults: the names that LiteLLM knows beside them, and its default for each.

    Raises:
        InvalidRequest: a name that nobody knows, with the nearest known one, or LiteLLM's with a value that asks for
            something.
    """
    known = set(supported)
    for name, value in given.items():
        if name in known:
            continue
        if name not in defaults:
            near = get_close_matches(name, sorted(known | set(defaults)), n=1)
            hint = f" Did you mean `{near[0]}`?" if near else f" Known are {', '.join(sorted(known))}."
            raise InvalidRequest(f"`{shown(name)}` is not a known field.{hint}", param=shown(name))
        if not _asks_for_nothing(value, defaults[name]):
            raise InvalidRequest(
                f"`{name}` is a field of LiteLLM's that this gateway does not support. Leave it out, or send null.",
                param=name,
            )


def _asks_for_nothing(value: Any, default: Any) -> bool:
    if value is None or value is False or (isinstance(value, str | list | dict) and not value):
        return True
    # 0 is not False here: a limit of 0 asks for something.
    return not isinstance(value, bool) and default is not None and bool(value == default)


def shown(name: str) -> str:
    """Return a caller's own words for a message; what may be a key in the wrong place does not come back."""
    return name if len(name) <= _SHOWN and name.isprintable() and not name.startswith("sk-") else "…"
