"""The requests and responses of the team routes."""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.admin.field_rules import FieldLimits, ForbiddenFields, changed_rules, check_paths
from twisted_vllm.admin.fields import (
    MAX_ITEMS,
    Alias,
    Email,
    Label,
    Labels,
    Models,
    check_alias,
    check_depth,
    check_email,
    check_models,
    one_of_fields,
    stored_models,
)
from twisted_vllm.admin.keys.models import UNSUPPORTED_ON_GENERATE, KeyReport
from twisted_vllm.admin.limits import LimitFields
from twisted_vllm.admin.models import Body, Json, Query, Record, Response, Strings
from twisted_vllm.admin.users.models import UserReport
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.field_policy.rules import NO_RULES, FieldRules
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance

TeamRole = Literal["user", "admin"]

_UNSUPPORTED_ON_MEMBER: Json = dict.fromkeys(
    ("max_budget_in_team", "budget_duration", "tpm_limit", "rpm_limit", "allowed_models")
)


class NewMember(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user who becomes a member of a team, named by `user_id`, or else by `user_email`."""

    user_id: Alias | None = None
    user_email: Email | None = None
    role: TeamRole = "user"

    def check(self) -> None:
        """Check the id and the address, as those of a user: an unknown member becomes a user.

        Raises:
            InvalidRequest: one of them cannot be used.
        """
        check_alias(self.user_id, "member.user_id")
        check_email(self.user_email, "member.user_email")


_Member = Annotated[NewMember, msgspec.Meta(extra_json_schema=one_of_fields("user_id", "user_email"))]
_Members = Annotated[tuple[_Member, ...], msgspec.Meta(max_length=MAX_ITEMS)]


class TeamFields(LimitFields, frozen=True, kw_only=True):
    """The fields of a team that an administrator may set."""

    UNSUPPORTED = {
        **{
            name: UNSUPPORTED_ON_GENERATE[name]
            for name in (
                *("budget_limits", "budget_id", "tpd_limit", "router_settings"),
                *("rpm_limit_type", "tpm_limit_type", "guardrails", "policies"),
            )
        },
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

    team_alias: Alias | None = None
    models: Models | None = None
    blocked: bool | None = None
    metadata: dict[str, Any] | None = None
    forbidden_fields: ForbiddenFields | None = None
    field_limits: FieldLimits | None = None

    WHOLE_NUMBER_MAPS = (*LimitFields.WHOLE_NUMBER_MAPS, "field_limits")

    def check(self) -> None:
        """Check the name, models, limits, fields and metadata.

        Raises:
            InvalidRequest: a value cannot be used.
        """
        check_alias(self.team_alias, "team_alias")
        check_models(self.models)
        super().check()
        check_paths("forbidden_fields", self.forbidden_fields)
        check_paths("field_limits", self.field_limits)
        check_depth(self.metadata)

    def values(
        self, given: Container[str], before: Allowance = UNLIMITED, rules: FieldRules = NO_RULES
    ) -> dict[str, Any]:
        """Return the attributes of a `TeamRecord` that a request sets. null sets the empty value.

        Args:
            given: the names of the fields that the request has.
            before: the limits until now.
            rules: the rules about fields until now.
        """
        found: dict[str, Any] = {
            "team_alias": self.team_alias,
            "models": stored_models(self.models),
            "blocked": bool(self.blocked),
            "metadata": self.metadata or {},
        }
        found = {name: value for name, value in found.items() if name in given}
        fields = {"forbidden_fields": self.forbidden_fields, "field_limits": self.field_limits}
        return {
            **found,
            "allowance": self.limits(given, before),
            "fields": changed_rules(fields, given, rules),
        }


class NewTeamRequest(TeamFields, frozen=True, kw_only=True):
    """The body of ``POST /team/new``."""

    team_id: Alias | None = None
    members_with_roles: _Members | None = None

    def check(self) -> None:
        """Check the fields of the team, its id and its members."""
        super().check()
        check_alias(self.team_id, "team_id")
        for member in self.members_with_roles or ():
            member.check()


class UpdateTeamRequest(TeamFields, frozen=True, kw_only=True):
    """The body of ``POST /team/update``. Fields that are absent stay as they are; null clears a field."""

    team_id: Label


class TeamRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/block`` and ``/team/unblock``."""

    team_id: Label


class DeleteTeamsRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/delete``."""

    team_ids: Annotated[Labels, msgspec.Meta(min_length=1)]


class AddMembersRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/member_add``: one member or several."""

    UNSUPPORTED = _UNSUPPORTED_ON_MEMBER

    team_id: Label
    member: _Member | _Members

    @property
    def members(self) -> tuple[NewMember, ...]:
        """The members, also where the request has only one."""
        return (self.member,) if isinstance(self.member, NewMember) else self.member

    def check(self) -> None:
        """Check the members."""
        for member in self.members:
            member.check()


class UpdateMemberRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/member_update``. It names the user by `user_id`, or else by `user_email`."""

    UNSUPPORTED = _UNSUPPORTED_ON_MEMBER

    team_id: Label
    user_id: Label | None = None
    user_email: Label | None = None
    role: TeamRole | None = None

    def check(self) -> None:
        """Check that a member is named."""
        _check_member_named(self.user_id, self.user_email)


class RemoveMemberRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/member_delete``. It names the user by `user_id`, or else by `user_email`."""

    team_id: Label
    user_id: Label | None = None
    user_email: Label | None = None

    def check(self) -> None:
        """Check that a member is named."""
        _check_member_named(self.user_id, self.user_email)


def _check_member_named(user_id: str | None, user_email: str | None) -> None:
    if user_id is None and user_email is None:
        raise InvalidRequest("Name the member: `user_id`, or `user_email`.", param="user_id")


class TeamInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /team/info``."""

    team_id: Annotated[str, msgspec.Meta(min_length=1)]


class TeamListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /team/list``."""

    UNSUPPORTED = {"organization_id": None}

    user_id: Annotated[str, msgspec.Meta(description="Only the teams of this user. Default: all teams.")] = ""


class Membership(Response, kw_only=True):
    """The membership of a user in a team."""

    user_id: str
    team_id: str
    budget_id: None
    litellm_budget_table: None


class MemberRole(Response, kw_only=True):
    """A member of a team."""

    role: TeamRole
    user_id: str
    user_email: None


class TeamReport(Record, kw_only=True):
    """A team."""

    models: Strings
    metadata: Json
    team_id: str
    team_alias: str | None
    organization_id: None
    blocked: bool
    forbidden_fields: Strings
    field_limits: dict[str, int]
    members_with_roles: tuple[MemberRole, ...]


class ChangedMember(Response, kw_only=True):
    """A member of a team after a change."""

    team_id: str
    user_id: str
    user_email: str | None
    role: TeamRole
    max_budget_in_team: None
    tpm_limit: None
    rpm_limit: None


class TeamInfo(Response, kw_only=True):
    """A team with its members and keys."""

    team_id: str
    team_info: TeamReport
    keys: tuple[KeyReport, ...]
    team_memberships: tuple[Membership, ...]


class ChangedTeam(Response, kw_only=True):
    """A team after a change."""

    team_id: str
    data: TeamReport


class DeletedTeams(Response, kw_only=True):
    """The ids of the teams that were deleted."""

    deleted_teams: Strings


class AddedMembers(TeamReport, kw_only=True):
    """A team, with the users who became members."""

    updated_users: tuple[UserReport, ...]
    updated_team_memberships: tuple[Membership, ...]
