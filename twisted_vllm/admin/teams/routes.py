"""The routes of teams and their members, in LiteLLM's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.fields import one_of_fields
from twisted_vllm.admin.keys.operations import report_keys
from twisted_vllm.admin.memberships import find_team
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.routing import Routes
from twisted_vllm.admin.scope import IScope
from twisted_vllm.admin.self_service import NOT_OWN_TEAM
from twisted_vllm.admin.teams import operations
from twisted_vllm.admin.teams.models import (
    AddedMembers,
    AddMembersRequest,
    ChangedMember,
    ChangedTeam,
    DeletedTeams,
    DeleteTeamsRequest,
    NewTeamRequest,
    RemoveMemberRequest,
    TeamInfo,
    TeamInfoQuery,
    TeamListQuery,
    TeamReport,
    TeamRequest,
    UpdateMemberRequest,
    UpdateTeamRequest,
)
from twisted_vllm.admin.teams.operations import report_membership, report_team, report_teams
from twisted_vllm.admin.users.operations import report_users
from twisted_vllm.auth.records import Principal
from twisted_vllm.errors import RouteNotAllowed
from twisted_vllm.storage.records import TeamRecord
from twisted_vllm.storage.transaction import Transaction

routes = Routes()

#: JSON Schema: a request names a user
_NAMES_USER = one_of_fields("user_id", "user_email")


@routes.post("/team/new", body=NewTeamRequest, response=TeamReport, errors=(404, 409))
async def new(call: AdminCall, body: NewTeamRequest) -> Json:
    """Create a team with its first members."""
    team_id = call.new_id() if body.team_id is None else body.team_id

    def work(transaction: Transaction) -> Json:
        return report_team(transaction, operations.add(transaction, call.audit, body, team_id), call.now)

    return await call.change(work)


@routes.get("/team/info", access=Access.ANY_KEY, query=TeamInfoQuery, response=TeamInfo, errors=(404,))
async def info(call: AdminCall, query: TeamInfoQuery) -> Json:
    """Return a team with its members and keys. A key sees its own team, and its user's teams.

    Administrators of the team see all of it, its members only what is their own.
    """
    team_id = query.team_id

    def work(transaction: Transaction) -> Json:
        own = call.scope.own_teams(transaction)
        if own is not None and team_id not in own:
            raise RouteNotAllowed(NOT_OWN_TEAM)
        team = find_team(transaction, team_id)
        [report] = reports_for(transaction, call.scope, call.principal, [team], call.now)
        keys = call.scope.visible_keys(transaction, transaction.keys.find(team_id=team_id))
        shown = {member["user_id"] for member in report["members_with_roles"]}
        members = transaction.members.of_teams([team_id])[team_id]
        return {
            "team_id": team_id,
            "team_info": report,
            "keys": report_keys(transaction, keys, call.now),
            "team_memberships": [report_membership(member) for member in members if member.user_id in shown],
        }

    return await call.read(work)


def reports_for(
    transaction: Transaction, scope: IScope, principal: Principal, teams: Sequence[TeamRecord], now: datetime
) -> list[Json]:
    """Return teams as a caller may see them: who administers a team sees its other members, and its metadata."""
    reports = report_teams(transaction, teams, now)
    for report in reports:
        if not scope.sees_team(transaction, report["team_id"]):
            own = [member for member in report["members_with_roles"] if member["user_id"] == principal.user_id]
            report.update(metadata={}, members_with_roles=own)
    return reports


@routes.post("/team/update", body=UpdateTeamRequest, response=ChangedTeam, errors=(404,))
async def update(call: AdminCall, body: UpdateTeamRequest) -> Json:
    """Change a team. Fields that are absent stay as they are; null clears a field."""

    def work(transaction: Transaction) -> Json:
        return report_team(transaction, operations.update(transaction, call.audit, body, call.given), call.now)

    return {"team_id": body.team_id, "data": await call.change(work)}


@routes.post("/team/delete", body=DeleteTeamsRequest, response=DeletedTeams, errors=(404,))
async def delete(call: AdminCall, body: DeleteTeamsRequest) -> Json:
    """Delete teams with their keys: all that the request names, or none if one does not exist."""
    deleted = await call.change(lambda transaction: operations.delete(transaction, call.audit, body.team_ids))
    return {"deleted_teams": deleted}


@routes.get("/team/list", access=Access.ANY_KEY, query=TeamListQuery, response=tuple[TeamReport, ...])
async def list_teams(call: AdminCall, query: TeamListQuery) -> list[Json]:
    """Return all teams that the caller may see, or those of one user."""

    def work(transaction: Transaction) -> list[Json]:
        own = call.scope.own_teams(transaction)
        if query.user_id:
            if own is not None and query.user_id != call.principal.user_id:
                raise RouteNotAllowed("This key may see the teams of its own user only.", param="user_id")
            members = transaction.members.of_users([query.user_id])[query.user_id]
            ids = frozenset(member.team_id for member in members)
            own = ids if own is None else ids & own
        teams = transaction.teams.find() if own is None else transaction.teams.among("team_id", sorted(own))
        return reports_for(transaction, call.scope, call.principal, teams, call.now)

    return await call.read(work)


@routes.post("/team/block", body=TeamRequest, response=TeamReport, errors=(404,))
async def block(call: AdminCall, body: TeamRequest) -> Json:
    """Block the keys of a team, from the next request on."""
    return await _set_blocked(call, body, True)


@routes.post("/team/unblock", body=TeamRequest, response=TeamReport, errors=(404,))
async def unblock(call: AdminCall, body: TeamRequest) -> Json:
    """Unblock the keys of a team."""
    return await _set_blocked(call, body, False)


async def _set_blocked(call: AdminCall, body: TeamRequest, blocked: bool) -> Json:
    def work(transaction: Transaction) -> Json:
        team = operations.set_blocked(transaction, call.audit, body.team_id, blocked)
        return report_team(transaction, team, call.now)

    return await call.change(work)


@routes.post(
    "/team/member_add",
    access=Access.SELF_SERVICE,
    body=AddMembersRequest,
    response=AddedMembers,
    constraint={"properties": {"member": {"anyOf": [{"type": "array"}, _NAMES_USER]}}},
    errors=(404, 409),
)
async def add_members(call: AdminCall, body: AddMembersRequest) -> Json:
    """Add one member or several to a team. A user whose id is unknown is created."""

    def work(transaction: Transaction) -> Json:
        team = operations.administered_team(transaction, call.scope, body.team_id, call.given)
        users = operations.add_members(transaction, call.audit, team, body.members)
        added = {user.user_id for user in users}
        members = transaction.members.of_teams([team.team_id])[team.team_id]
        return {
            **report_team(transaction, team, call.now),
            # what users have besides the team concerns administrators only
            "updated_users": report_users(transaction, users, call.now) if call.scope.sees_all else (),
            "updated_team_memberships": [report_membership(member) for member in members if member.user_id in added],
        }

    return await call.change(work)


@routes.post(
    "/team/member_update",
    access=Access.SELF_SERVICE,
    body=UpdateMemberRequest,
    response=ChangedMember,
    constraint=_NAMES_USER,
    errors=(404,),
)
async def update_member(call: AdminCall, body: UpdateMemberRequest) -> Json:
    """Change the role of a member of a team."""
    team, user, member = await call.change(
        lambda transaction: operations.update_member(transaction, call.audit, body, call.given)
    )
    return {
        "team_id": team.team_id,
        "user_id": user.user_id,
        "user_email": user.user_email,
        "role": member.role,
        **dict.fromkeys(("max_budget_in_team", "tpm_limit", "rpm_limit")),
    }


@routes.post(
    "/team/member_delete",
    access=Access.SELF_SERVICE,
    body=RemoveMemberRequest,
    response=TeamReport,
    constraint=_NAMES_USER,
    errors=(404,),
)
async def remove_member(call: AdminCall, body: RemoveMemberRequest) -> Json:
    """Remove a user from a team, and delete the user's keys of that team."""

    def work(transaction: Transaction) -> Json:
        return report_team(transaction, operations.remove_member(transaction, call.audit, body, call.given), call.now)

    return await call.change(work)
