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
    "budget_id": None,
    "budget_limits": None,
    "model_max_budget": {},
    "budget_fallbacks": None,
    "tpd_limit": None,
    "tag_rpm_limit": None,
    "rpm_limit_type": None,
    "tpm_limit_type": None,
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

#: fields of ``/user/new`` and ``/user/update`` likewise
USER_DEFAULTS: dict[str, Any] = {
    **{name: GENERATE_DEFAULTS[name] for name in GENERATE_DEFAULTS if name != "config"},
    "organizations": None,
    "password": None,
    "sso_user_id": None,
}

#: fields of ``/team/new`` and ``/team/update`` likewise
TEAM_DEFAULTS: dict[str, Any] = {
    **{name: GENERATE_DEFAULTS[name] for name in ("budget_limits", "budget_id", "tpd_limit", "router_settings")},
    **{name: GENERATE_DEFAULTS[name] for name in ("rpm_limit_type", "tpm_limit_type", "guardrails", "policies")},
    "object_permission": None,
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

#: fields of ``/team/member_add`` and ``/team/member_update`` likewise
MEMBER_DEFAULTS: dict[str, Any] = dict.fromkeys(
    ("max_budget_in_team", "budget_duration", "tpm_limit", "rpm_limit", "allowed_models")
)

#: fields of ``/customer/new`` and ``/customer/update`` likewise
CUSTOMER_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("budget_id", "default_model", "allowed_model_region", "object_permission", "tpd_limit")),
    "model_max_budget": {},
    "spend": 0.0,
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
