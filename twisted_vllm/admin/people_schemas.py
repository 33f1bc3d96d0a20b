"""What the endpoints of users and teams take."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.admin.allowances import LimitFields, check_limits
from twisted_vllm.admin.fields import ROLES, Alias, Duration, Email, Models, Never, Role, one_of_fields
from twisted_vllm.admin.litellm import MEMBER_DEFAULTS, TEAM_DEFAULTS, USER_DEFAULTS
from twisted_vllm.admin.schemas import (
    Label,
    Labels,
    check_alias,
    check_depth,
    check_models,
    parse,
    plain_models,
)
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance

_ADMINISTRATORS = ("proxy_admin", "proxy_admin_viewer")


class UserFields(LimitFields, frozen=True, kw_only=True):
    """What an administrator may say of a user."""

    user_alias: Alias | None = None
    user_email: Email | None = None
    user_role: Role | None = None
    models: Models | None = None
    metadata: dict[str, Any] | None = None

    def values(self, given: Container[str], before: Allowance = UNLIMITED) -> dict[str, Any]:
        """Return the attributes of a record that were given; null is the empty value of each, no limit of a limit."""
        found: dict[str, Any] = {
            "user_alias": self.user_alias,
            "user_email": None if self.user_email is None else self.user_email.lower(),
            "user_role": self.user_role or ROLES[0],
            "models": plain_models(self.models),
            "metadata": self.metadata or {},
        }
        found = {name: value for name, value in found.items() if name in given}
        return {**found, "allowance": self.limits(given, before)}


class NewUserRequest(UserFields, frozen=True, kw_only=True):
    """The body of ``POST /user/new``; it makes a key as well, unless it is told not to."""

    user_id: Alias | None = None
    teams: Labels | None = None
    auto_create_key: bool | None = None
    key_alias: Alias | None = None
    duration: Duration | Never | None = None


class UpdateUserRequest(UserFields, frozen=True, kw_only=True):
    """The body of ``POST /user/update``: the user's id, else the address; what is absent stays, null clears."""

    user_id: Label | None = None


class DeleteUsersRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /user/delete``."""

    user_ids: Annotated[Labels, msgspec.Meta(min_length=1)]


class NewMember(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who becomes a member of a team: the user's id, else the address."""

    user_id: Alias | None = None
    user_email: Email | None = None
    role: Literal["user", "admin"] = "user"


_Member = Annotated[NewMember, msgspec.Meta(extra_json_schema=one_of_fields("user_id", "user_email"))]
_Members = Annotated[tuple[_Member, ...], msgspec.Meta(max_length=1000)]


class TeamFields(LimitFields, frozen=True, kw_only=True):
    """What an administrator may say of a team."""

    team_alias: Alias | None = None
    models: Models | None = None
    blocked: bool | None = None
    metadata: dict[str, Any] | None = None

    def values(self, given: Container[str], before: Allowance = UNLIMITED) -> dict[str, Any]:
        """Return the attributes of a record that were given; null is the empty value of each, no limit of a limit."""
        found: dict[str, Any] = {
            "team_alias": self.team_alias,
            "models": plain_models(self.models),
            "blocked": bool(self.blocked),
            "metadata": self.metadata or {},
        }
        found = {name: value for name, value in found.items() if name in given}
        return {**found, "allowance": self.limits(given, before)}


class NewTeamRequest(TeamFields, frozen=True, kw_only=True):
    """The body of ``POST /team/new``."""

    team_id: Alias | None = None
    members_with_roles: _Members | None = None


class UpdateTeamRequest(TeamFields, frozen=True, kw_only=True):
    """The body of ``POST /team/update``: what is absent stays, null clears."""

    team_id: Label


class TeamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /team/block`` and ``/team/unblock``."""

    team_id: Label


class DeleteTeamsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /team/delete``."""

    team_ids: Annotated[Labels, msgspec.Meta(min_length=1)]


class AddMembersRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /team/member_add``: one member or several."""

    team_id: Label
    member: _Member | _Members


class UpdateMemberRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /team/member_update``: the user's id, else the address; a role that is absent stays."""

    team_id: Label
    user_id: Label | None = None
    user_email: Label | None = None
    role: Literal["user", "admin"] | None = None


class RemoveMemberRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /team/member_delete``."""

    team_id: Label
    user_id: Label | None = None
    user_email: Label | None = None


def parse_new_user(body: Mapping[str, Any]) -> NewUserRequest:
    """Return what is asked of ``/user/new``.

    Raises:
        InvalidRequest: something in it cannot be done.
    """
    found = parse(body, NewUserRequest, USER_DEFAULTS)
    _check_user(found)
    _check_id(found.user_id, "user_id")
    check_alias(found.key_alias, "key_alias")
    return found


def parse_update_user(body: Mapping[str, Any]) -> UpdateUserRequest:
    """Return what is asked of ``/user/update``.

    Raises:
        InvalidRequest: something in it cannot be done, or no user is named.
    """
    found = parse(body, UpdateUserRequest, USER_DEFAULTS)
    if found.user_id is None and found.user_email is None:
        raise InvalidRequest("Name the user: `user_id`, or `user_email`.", param="user_id")
    _check_user(found)
    return found


def _check_user(found: UserFields) -> None:
    check_alias(found.user_alias, "user_alias")
    if found.user_role in _ADMINISTRATORS:
        raise InvalidRequest(
            '`user_role` makes nobody an administrator here: give a key `allowed_routes: ["management"]` instead.',
            param="user_role",
        )
    if found.user_role is not None and found.user_role not in ROLES:
        raise InvalidRequest(f"`user_role` must be one of {', '.join(ROLES)}.", param="user_role")
    _check_email(found.user_email, "user_email")
    check_models(found.models)
    check_limits(found)
    check_depth(found.metadata)


def _check_email(address: str | None, param: str) -> None:
    if address is not None and "@" not in address:
        raise InvalidRequest(f"`{param}` must be an address with an @.", param=param)


def parse_new_team(body: Mapping[str, Any]) -> NewTeamRequest:
    """Return what is asked of ``/team/new``.

    Raises:
        InvalidRequest: something in it cannot be done.
    """
    found = parse(body, NewTeamRequest, TEAM_DEFAULTS)
    _check_team(found)
    _check_id(found.team_id, "team_id")
    _check_members(found.members_with_roles or ())
    return found


def parse_add_members(body: Mapping[str, Any]) -> tuple[str, tuple[NewMember, ...]]:
    """Return what is asked of ``/team/member_add``: the team and who joins it.

    Raises:
        InvalidRequest: something in it cannot be done.
    """
    found = parse(body, AddMembersRequest, MEMBER_DEFAULTS)
    members = (found.member,) if isinstance(found.member, NewMember) else found.member
    _check_members(members)
    return found.team_id, members


def _check_members(members: Iterable[NewMember]) -> None:
    """A member that is not known yet becomes a user, and is held to what users are."""
    for member in members:
        _check_id(member.user_id, "member.user_id")
        _check_email(member.user_email, "member.user_email")


def parse_update_team(body: Mapping[str, Any]) -> UpdateTeamRequest:
    """Return what is asked of ``/team/update``.

    Raises:
        InvalidRequest: something in it cannot be done.
    """
    found = parse(body, UpdateTeamRequest, TEAM_DEFAULTS)
    _check_team(found)
    return found


def _check_team(found: TeamFields) -> None:
    check_alias(found.team_alias, "team_alias")
    check_models(found.models)
    check_limits(found)
    check_depth(found.metadata)


def _check_id(identity: str | None, param: str) -> None:
    """An id stands in logs and in answers, and must not be a key that was put into the wrong place."""
    check_alias(identity, param)
