"""What the endpoints of users and teams answer."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from twisted_vllm.admin.answers import Answer, NumberedPage, Object, Record, Strings, Token
from twisted_vllm.admin.key_answers import KeyReport


class _PersonReport(Record, kw_only=True):
    models: Strings
    metadata: Object


class UserReport(_PersonReport, kw_only=True):
    """A user."""

    user_id: str
    user_alias: str | None
    user_email: str | None
    user_role: str
    teams: Annotated[Strings, msgspec.Meta(description="The ids of its teams.")]


class NewUser(UserReport, kw_only=True):
    """A user, with the fields of its first key where one was made."""

    key: Annotated[str | None, msgspec.Meta(description="The key, which is shown this once.")]
    token_id: Token | None


class Membership(Answer, kw_only=True):
    """A user's place in a team."""

    user_id: str
    team_id: str
    budget_id: None
    litellm_budget_table: None


class MemberRole(Answer, kw_only=True):
    """A user in a team."""

    role: Literal["user", "admin"]
    user_id: str
    user_email: None


class TeamReport(_PersonReport, kw_only=True):
    """A team."""

    team_id: str
    team_alias: str | None
    organization_id: None
    blocked: bool
    members_with_roles: tuple[MemberRole, ...]


class ChangedMember(Answer, kw_only=True):
    """A member of a team that was changed."""

    team_id: str
    user_id: str
    user_email: str | None
    role: Literal["user", "admin"]
    max_budget_in_team: None
    tpm_limit: None
    rpm_limit: None


class OwnTeam(Answer, kw_only=True):
    """A team, as far as its members see it."""

    team_id: str
    team_alias: str | None
    models: Strings


class UserInfo(Answer, kw_only=True):
    """A user with its keys and teams."""

    user_id: str
    user_info: UserReport
    keys: tuple[KeyReport, ...]
    teams: Annotated[
        tuple[Object, ...], msgspec.Meta(description="Whole for an administrator: as `TeamReport`, else `OwnTeam`.")
    ]


class ChangedUser(Answer, kw_only=True):
    """A user that was changed."""

    user_id: str
    data: UserReport


class CountedUser(UserReport, kw_only=True):
    """A user, with the number of its keys."""

    key_count: int


class UserList(NumberedPage, kw_only=True):
    """A page of users."""

    users: tuple[CountedUser, ...]


class TeamInfo(Answer, kw_only=True):
    """A team with its members and keys."""

    team_id: str
    team_info: TeamReport
    keys: tuple[KeyReport, ...]
    team_memberships: tuple[Membership, ...]


class ChangedTeam(Answer, kw_only=True):
    """A team that was changed."""

    team_id: str
    data: TeamReport


class DeletedTeams(Answer, kw_only=True):
    """The ids of the teams that were deleted."""

    deleted_teams: Strings


class AddedMembers(TeamReport, kw_only=True):
    """A team, with those who became its members."""

    updated_users: tuple[UserReport, ...]
    updated_team_memberships: tuple[Membership, ...]
