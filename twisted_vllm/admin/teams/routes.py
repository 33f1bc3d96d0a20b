"""The routes of teams and their members, in LiteLLM's shapes."""

from __future__ import annotations

from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.fields import one_of_fields
from twisted_vllm.admin.keys.operations import report_keys
from twisted_vllm.admin.memberships import find_team
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.routing import Routes
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


@routes.get("/team/info", query=TeamInfoQuery, response=TeamInfo, errors=(404,))
async def info(call: AdminCall, query: TeamInfoQuery) -> Json:
    """Return a team with its members and keys."""
    team_id = query.team_id

    def work(transaction: Transaction) -> Json:
        team = find_team(transaction, team_id)
        return {
            "team_id": team_id,
            "team_info": report_team(transaction, team, call.now),
            "keys": report_keys(transaction, transaction.keys.find(team_id=team_id), call.now),
            "team_memberships": [
                report_membership(member) for member in transaction.members.of_teams([team_id])[team_id]
            ],
        }

    return await call.read(work)


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


@routes.get("/team/list", query=TeamListQuery, response=tuple[TeamReport, ...])
async def list_teams(call: AdminCall, query: TeamListQuery) -> list[Json]:
    """Return all teams, or the teams of one user."""

    def work(transaction: Transaction) -> list[Json]:
        if query.user_id:
            ids = [member.team_id for member in transaction.members.of_users([query.user_id])[query.user_id]]
            return report_teams(transaction, transaction.teams.among("team_id", ids), call.now)
        return report_teams(transaction, transaction.teams.find(), call.now)

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
    body=AddMembersRequest,
    response=AddedMembers,
    constraint={"properties": {"member": {"anyOf": [{"type": "array"}, _NAMES_USER]}}},
    errors=(404, 409),
)
async def add_members(call: AdminCall, body: AddMembersRequest) -> Json:
    """Add one member or several to a team. A user whose id is unknown is created."""

    def work(transaction: Transaction) -> Json:
        team = find_team(transaction, body.team_id)
        users = operations.add_members(transaction, call.audit, team, body.members)
        added = {user.user_id for user in users}
        members = transaction.members.of_teams([team.team_id])[team.team_id]
        return {
            **report_team(transaction, team, call.now),
            "updated_users": report_users(transaction, users, call.now),
            "updated_team_memberships": [report_membership(member) for member in members if member.user_id in added],
        }

    return await call.change(work)


@routes.post(
    "/team/member_update",
    body=UpdateMemberRequest,
    response=ChangedMember,
    constraint=_NAMES_USER,
    errors=(404,),
)
async def update_member(call: AdminCall, body: UpdateMemberRequest) -> Json:
    """Change the role of a member of a team."""
    team, user, member = await call.change(lambda transaction: operations.update_member(transaction, call.audit, body))
    return {
        "team_id": team.team_id,
        "user_id": user.user_id,
        "user_email": user.user_email,
        "role": member.role,
        **dict.fromkeys(("max_budget_in_team", "tpm_limit", "rpm_limit")),
    }


@routes.post(
    "/team/member_delete",
    body=RemoveMemberRequest,
    response=TeamReport,
    constraint=_NAMES_USER,
    errors=(404,),
)
async def remove_member(call: AdminCall, body: RemoveMemberRequest) -> Json:
    """Remove a user from a team, and delete the user's keys of that team."""

    def work(transaction: Transaction) -> Json:
        return report_team(transaction, operations.remove_member(transaction, call.audit, body), call.now)

    return await call.change(work)
