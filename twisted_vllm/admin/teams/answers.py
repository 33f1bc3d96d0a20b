"""What the team routes answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from twisted_vllm.admin.fields import (
    LogMode,
)
from twisted_vllm.admin.keys.answers import KeyReport
from twisted_vllm.admin.models import (
    LISTED_MEMBERS,
    MAX_SHOWN,
    BudgetTable,
    Json,
    Record,
    ReportedModelBudget,
    Response,
    Strings,
    WalkedPage,
)
from twisted_vllm.admin.teams.models import TeamRole
from twisted_vllm.admin.users.models import UserReport


class Membership(Response, kw_only=True):
    """The membership of a user in a team."""

    user_id: str
    team_id: str
    budget_id: str | None
    litellm_budget_table: BudgetTable | None
    spend: Annotated[float, msgspec.Meta(description="In the team, in its budget's current period, in US dollars.")]
    total_spend: float
    budget_reset_at: datetime | None


class OwnMembership(Membership, kw_only=True):
    """The membership of the caller's user in a team."""

    role: str
    user_email: str | None
    team_alias: str | None


class MemberRole(Response, kw_only=True):
    """A member of a team."""

    role: TeamRole
    user_id: str
    user_email: str | None


class TeamReport(Record, kw_only=True):
    """A team."""

    models: Strings
    metadata: Json
    team_id: str
    team_alias: str | None
    organization_id: str | None
    budget_id: str | None
    litellm_budget_table: BudgetTable | None
    model_aliases: dict[str, str]
    team_member_budget_table: Annotated[
        BudgetTable | None, msgspec.Meta(description="The limits of each member that sets none of its own.")
    ]
    blocked: bool
    forbidden_fields: Strings
    field_limits: dict[str, int]
    log_bodies: LogMode | None
    members_with_roles: Annotated[
        tuple[MemberRole, ...],
        msgspec.Meta(
            description=f"By their ids: the first {LISTED_MEMBERS} in a list of teams, else the first {MAX_SHOWN}."
        ),
    ]
    members_count: Annotated[int, msgspec.Meta(description="How many members the team has.")]


class ListedTeam(TeamReport, kw_only=True):
    """A team, with the number of its keys."""

    keys_count: int


class TeamPage(WalkedPage, kw_only=True):
    """A page of teams."""

    teams: tuple[ListedTeam, ...]


class AddedMember(Response, kw_only=True):
    """The result for one member of a bulk request."""

    user_id: str | None
    user_email: str | None
    success: bool
    error: str | None
    updated_user: UserReport | None
    updated_team_membership: Membership | None


class BulkAddedMembers(Response, kw_only=True):
    """The results of a bulk request, in its order."""

    team_id: str
    results: tuple[AddedMember, ...]
    total_requested: int
    successful_additions: int
    failed_additions: int
    updated_team: TeamReport


class ChangedMember(Response, kw_only=True):
    """A member of a team after a change."""

    team_id: str
    user_id: str
    user_email: str | None
    role: TeamRole
    max_budget_in_team: float | None
    budget_duration: str | None
    tpm_limit: int | None
    rpm_limit: int | None
    model_max_budget: dict[str, ReportedModelBudget]


class TeamInfo(Response, kw_only=True):
    """A team with its members and keys."""

    team_id: str
    team_info: TeamReport
    keys: Annotated[tuple[KeyReport, ...], msgspec.Meta(description="The newest keys, up to `key_limit`.")]
    keys_count: Annotated[int, msgspec.Meta(description="How many keys of the team the caller may see.")]
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
