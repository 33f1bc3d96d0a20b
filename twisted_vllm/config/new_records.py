"""What new keys, users and teams get that the request leaves out: LiteLLM's ``default_…`` settings."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import attrs
import msgspec

from twisted_vllm.config.checks import (
    MAX_DOLLARS,
    amount,
    checker,
    kind_of,
    list_of,
    one_of,
    optional,
    period,
    text,
    whole,
)
from twisted_vllm.config.declaration import setting
from twisted_vllm.config.problems import Place, Rejected

#: the roles of users that a new user may get
_ROLES = ("internal_user", "internal_user_viewer")

_NONE = "none"
_money = optional(amount(MAX_DOLLARS), _NONE)
_count = optional(whole(0), _NONE)
_period = optional(period, _NONE)
_name = optional(text, _NONE)


@checker("mapping")
def json_object(value: object, place: Place) -> Mapping[str, Any]:
    """Check for a mapping that JSON can hold; ``null`` means an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise Rejected(f"must be a mapping with names, not {kind_of(value)}")
    try:
        found: Mapping[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError):
        raise Rejected("holds a value that JSON does not have") from None
    return found


@attrs.frozen
class DefaultMembership:
    """A team of each new user.

    Attributes:
        team_id: the team.
        role: ``user`` or ``admin``.
        max_budget: what the user may spend there, in US dollars; None for no limit of its own.
    """

    team_id: str
    role: str = "user"
    max_budget: Decimal | None = None


@checker("team", "an id, or a mapping with team_id, max_budget_in_team and user_role")
def membership(value: object, place: Place) -> DefaultMembership:
    """Check for a team of each new user."""
    if not isinstance(value, dict):
        return DefaultMembership(text(value, place))
    unknown = sorted(str(name) for name in value if name not in ("team_id", "max_budget_in_team", "user_role"))
    if unknown or "team_id" not in value:
        raise Rejected("must have a team_id, and perhaps max_budget_in_team and user_role")
    return DefaultMembership(
        text(value["team_id"], place),
        one_of("user", "admin")(value.get("user_role", "user"), place),
        _money(value.get("max_budget_in_team"), place),
    )


@attrs.frozen
class NewKeyDefaults:
    """What a new key gets that the request leaves out, by LiteLLM's names."""

    max_budget: Decimal | None = setting(None, _money, "The budget.")
    budget_duration: str | None = setting(None, _period, "The period of the budget.")
    duration: str | None = setting(None, _period, "The time until the key expires.")
    max_parallel_requests: int | None = setting(None, _count, "Requests in flight at a time.", unit="requests")
    tpm_limit: int | None = setting(None, _count, "Tokens in a minute.", unit="tokens")
    rpm_limit: int | None = setting(None, _count, "Requests in a minute.", unit="requests")
    models: tuple[str, ...] = setting((), list_of(text), "The models that it may use.")
    user_id: str | None = setting(None, _name, "The user that it belongs to.")
    team_id: str | None = setting(None, _name, "The team that it belongs to.")
    metadata: Mapping[str, Any] = setting({}, json_object, "Its metadata.")


@attrs.frozen
class NewUserDefaults:
    """What a new user gets that the request leaves out, by LiteLLM's names."""

    user_role: str | None = setting(None, optional(one_of(*_ROLES), "internal_user"), "The role.")
    max_budget: Decimal | None = setting(None, _money, "The budget.")
    budget_duration: str | None = setting(None, _period, "The period of the budget.")
    max_parallel_requests: int | None = setting(None, _count, "Requests in flight at a time.", unit="requests")
    tpm_limit: int | None = setting(None, _count, "Tokens in a minute.", unit="tokens")
    rpm_limit: int | None = setting(None, _count, "Requests in a minute.", unit="requests")
    models: tuple[str, ...] = setting((), list_of(text), "The models that its keys may use.")
    teams: tuple[DefaultMembership, ...] = setting(
        (), list_of(membership), "The teams that it joins, if the request names none."
    )


@attrs.frozen
class NewTeamDefaults:
    """What a new team gets that the request leaves out, by LiteLLM's names."""

    max_budget: Decimal | None = setting(None, _money, "The budget.")
    budget_duration: str | None = setting(None, _period, "The period of the budget.")
    tpm_limit: int | None = setting(None, _count, "Tokens in a minute.", unit="tokens")
    rpm_limit: int | None = setting(None, _count, "Requests in a minute.", unit="requests")
    models: tuple[str, ...] = setting((), list_of(text), "The models that its keys may use.")


@attrs.frozen
class RecordDefaults:
    """What new records get that the request leaves out.

    Attributes:
        keys: of keys.
        users: of users.
        teams: of teams.
        user_budget: the budget of a user with the role ``internal_user``, in US dollars.
        user_budget_duration: its period.
    """

    keys: NewKeyDefaults = NewKeyDefaults()
    users: NewUserDefaults = NewUserDefaults()
    teams: NewTeamDefaults = NewTeamDefaults()
    user_budget: Decimal | None = None
    user_budget_duration: str | None = None


#: new records get nothing
NO_DEFAULTS = RecordDefaults()
