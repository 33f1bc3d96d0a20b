"""The routes of teams and their members, in LiteLLM's shapes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import ColumnElement

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.defaults import with_team_defaults
from twisted_vllm.admin.fields import NAMES_USER
from twisted_vllm.admin.keys.operations import report_keys
from twisted_vllm.admin.limits import report_limits
from twisted_vllm.admin.lists import asked_page, link_next, place_of, reported
from twisted_vllm.admin.memberships import find_team
from twisted_vllm.admin.models import LISTED_MEMBERS, MAX_SHOWN, Json, NoQuery
from twisted_vllm.admin.routing import Routes
from twisted_vllm.admin.self_service import NOT_OWN_TEAM
from twisted_vllm.admin.teams import operations
from twisted_vllm.admin.teams.answers import (
    AddedMembers,
    BulkAddedMembers,
    ChangedMember,
    ChangedTeam,
    DeletedTeams,
    OwnMembership,
    TeamInfo,
    TeamPage,
    TeamReport,
)
from twisted_vllm.admin.teams.models import (
    AddMembersRequest,
    BulkAddMembersRequest,
    DeleteTeamsRequest,
    NewMember,
    NewTeamRequest,
    RemoveMemberRequest,
    TeamInfoQuery,
    TeamListQuery,
    TeamModelsRequest,
    TeamPageQuery,
    TeamRequest,
    UpdateMemberRequest,
    UpdateTeamRequest,
)
from twisted_vllm.admin.teams.operations import report_memberships, report_team, report_teams
from twisted_vllm.admin.users.operations import report_users
from twisted_vllm.errors import InvalidRequest, NotFound, RouteNotAllowed
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import TeamRecord
from twisted_vllm.storage.transaction import Transaction

routes = Routes()


@routes.post("/team/new", body=NewTeamRequest, response=TeamReport, errors=(404, 409))
async def new(call: AdminCall, body: NewTeamRequest) -> Json:
    """Create a team with its first members. As in LiteLLM, the user who makes it becomes its administrator."""
    body = with_team_defaults(body, call.given, call.context.record_defaults)
    team_id = call.new_id() if body.team_id is None else body.team_id

    def work(transaction: Transaction) -> Json:
        with_maker = _with_maker(transaction, body, call.principal.user_id)
        return report_team(transaction, operations.add(transaction, call.audit, with_maker, team_id), call.now)

    return await call.change(work)


def _with_maker(transaction: Transaction, body: NewTeamRequest, maker: str | None) -> NewTeamRequest:
    """Return a request with the user who sends it among the members; a key's `user_id` may be a mere label."""
    members = body.members_with_roles or ()
    if maker is None or transaction.users.get(maker) is None or any(each.user_id == maker for each in members):
        return body
    return msgspec.structs.replace(body, members_with_roles=(*members, NewMember(user_id=maker, role="admin")))


@routes.get("/team/info", access=Access.ANY_KEY, query=TeamInfoQuery, response=TeamInfo, errors=(404,))
async def info(call: AdminCall, query: TeamInfoQuery) -> Json:
    """Return a team with its members and keys. A key sees its own team, and its user's teams.

    Administrators of the team see all of it, its members only what is their own.
    """
    team_id = query.team_id or call.principal.team_id
    if not team_id:
        raise NotFound("The caller's key has no team. Name one: /team/info?team_id=…", param="team_id")

    def work(transaction: Transaction) -> Json:
        own = call.scope.own_teams(transaction)
        if own is not None and team_id not in own:
            raise RouteNotAllowed(NOT_OWN_TEAM)
        team = find_team(transaction, team_id)
        [report] = _reports(transaction, call, [team], MAX_SHOWN, query.members_after)
        newest = PageQuery(size=query.key_limit, equals={"team_id": team_id})
        keys = transaction.keys.page(newest, *call.scope.own_keys(transaction))
        shown = [member["user_id"] for member in report["members_with_roles"]]
        members = transaction.members.these(team_id, shown)
        return {
            "team_id": team_id,
            "team_info": report,
            "keys": reported(keys.records, lambda some: report_keys(transaction, some, call.now)),
            "keys_count": keys.total_count,
            "team_memberships": reported(members, lambda some: report_memberships(transaction, some, call.now)),
        }

    return await call.read(work)


def _reports(
    transaction: Transaction,
    call: AdminCall,
    teams: Sequence[TeamRecord],
    most: int = LISTED_MEMBERS,
    after: str = "",
) -> list[Json]:
    """Return teams as a caller may see them: who administers a team sees its other members, and its metadata.

    Args:
        transaction: the transaction.
        call: who asks.
        teams: the teams.
        most: as in `report_teams`.
        after: likewise.
    """
    administered = call.scope.administered_teams(transaction)
    if administered is None:
        return report_teams(transaction, teams, call.now, most, after)
    reports = report_teams(transaction, teams, call.now, most, after)
    for report in reports:
        if report["team_id"] not in administered:
            own = operations.report_role(transaction, report["team_id"], call.principal.user_id)
            report.update(metadata={}, members_with_roles=own, members_count=len(own))
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
async def list_teams(call: AdminCall, query: TeamListQuery) -> msgspec.Raw:
    """Return all teams that the caller may see, or those of one user. If they are more than 1000, ask by page."""

    def work(transaction: Transaction) -> tuple[msgspec.Raw, str | None]:
        page = transaction.teams.page(query.page_query, *_conditions(transaction, call, query.user_id))
        teams = asked_page(page, call.given, "teams", "/team/list")
        return reported(teams, lambda some: _reports(transaction, call, some)), page.next

    found, following = await call.read(work)
    link_next(call, following)
    return found


@routes.get("/v2/team/list", access=Access.ANY_KEY, query=TeamPageQuery, response=TeamPage)
async def list_page(call: AdminCall, query: TeamPageQuery) -> Json:
    """Return a page of the teams that the caller may see, each with the number of its members and keys."""

    def work(transaction: Transaction) -> Json:
        page = transaction.teams.page(query.page_query, *_conditions(transaction, call, query.user_id))
        ids = [team.team_id for team in page.records]
        counts = transaction.keys.count_by("team_id", ids)

        def report(teams: Sequence[TeamRecord]) -> list[Json]:
            return [
                {**each, "keys_count": counts.get(each["team_id"], 0)} for each in _reports(transaction, call, teams)
            ]

        return {"teams": reported(page.records, report), **place_of(page, query.page_size)}

    return await call.read(work)


def _conditions(transaction: Transaction, call: AdminCall, user_id: str) -> list[ColumnElement[bool]]:
    """Return the conditions that the caller may see a team, and that it has a member; an empty id is any.

    Raises:
        RouteNotAllowed: it is another user than the caller's, and the caller may not see that.
    """
    own = call.scope.own_teams(transaction)
    if own is not None and user_id not in ("", call.principal.user_id):
        raise RouteNotAllowed("This key may see the teams of its own user only.", param="user_id")
    found = [] if own is None else [transaction.teams.are(sorted(own))]
    return [*found, transaction.members.are_teams_of(user_id)] if user_id else found


@routes.get("/team/available", query=NoQuery, response=tuple[TeamReport, ...], access=Access.ANY_KEY)
async def list_available(_call: AdminCall, _query: NoQuery) -> list[Json]:
    """Return the teams that a user may join: none, because administrators add members."""
    return []


@routes.post("/team/model/add", body=TeamModelsRequest, response=TeamReport, errors=(404,))
async def add_models(call: AdminCall, body: TeamModelsRequest) -> Json:
    """Allow a team more models. A team without `models` may use all; then it may use these alone."""

    def work(transaction: Transaction) -> Json:
        return report_team(transaction, operations.add_models(transaction, call.audit, body), call.now)

    return await call.change(work)


@routes.post("/team/model/delete", body=TeamModelsRequest, response=TeamReport, errors=(404,))
async def remove_models(call: AdminCall, body: TeamModelsRequest) -> Json:
    """Take models from a team. The last cannot be taken, because an empty list allows all."""

    def work(transaction: Transaction) -> Json:
        return report_team(transaction, operations.remove_models(transaction, call.audit, body), call.now)

    return await call.change(work)


@routes.get(
    "/team/<string:team_id>/members/me",
    access=Access.ANY_KEY,
    query=NoQuery,
    response=OwnMembership,
    errors=(404,),
)
async def own_membership(call: AdminCall, _query: NoQuery) -> Json:
    """Return the membership of the caller's user in a team, with its spend and limits there."""
    user_id, team_id = call.principal.user_id, call.path["team_id"]
    if user_id is None:
        raise InvalidRequest("The caller is no user's key, so it is no member of a team.")

    def work(transaction: Transaction) -> Json:
        return operations.report_own_membership(transaction, team_id, user_id, call.now)

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
    constraint={"properties": {"member": {"anyOf": [{"type": "array"}, NAMES_USER]}}},
    errors=(404, 409),
)
async def add_members(call: AdminCall, body: AddMembersRequest) -> Json:
    """Add one member or several to a team. A user whose id or address is unknown is created."""

    def work(transaction: Transaction) -> Json:
        team = operations.administered_team(transaction, call.scope, body.team_id, call.given)
        users = operations.add_members(transaction, call.audit, team, body.members, body.allowance)
        members = transaction.members.these(team.team_id, [user.user_id for user in users])
        return {
            **report_team(transaction, team, call.now),
            # what users have besides the team concerns administrators only
            "updated_users": report_users(transaction, users, call.now) if call.scope.sees_all else (),
            "updated_team_memberships": report_memberships(transaction, members, call.now),
        }

    return await call.change(work)


@routes.post(
    "/team/bulk_member_add",
    body=BulkAddMembersRequest,
    response=BulkAddedMembers,
    constraint={
        "oneOf": [
            {
                "required": ["members"],
                "properties": {"members": {"type": "array", "minItems": 1}, "all_users": {"enum": [False, None]}},
            },
            {
                "required": ["all_users"],
                "properties": {
                    "members": {"anyOf": [{"type": "null"}, {"maxItems": 0}]},
                    "all_users": {"const": True},
                },
            },
        ]
    },
    errors=(404,),
)
async def add_each_member(call: AdminCall, body: BulkAddMembersRequest) -> Json:
    """Add several members, or all users, to a team. The response has a result for each."""

    def work(transaction: Transaction) -> Json:
        team = find_team(transaction, body.team_id)
        results = operations.add_each_member(transaction, call.audit, team, body)
        successful = sum(result["success"] for result in results)
        return {
            "team_id": team.team_id,
            "results": results,
            "total_requested": len(results),
            "successful_additions": successful,
            "failed_additions": len(results) - successful,
            "updated_team": report_team(transaction, team, call.now),
        }

    return await call.change(work)


@routes.post(
    "/team/member_update",
    access=Access.SELF_SERVICE,
    body=UpdateMemberRequest,
    response=ChangedMember,
    constraint=NAMES_USER,
    errors=(404,),
)
async def update_member(call: AdminCall, body: UpdateMemberRequest) -> Json:
    """Change the role or the limits of a member of a team. Fields that are absent stay; null clears a limit."""
    team, user, member = await call.change(
        lambda transaction: operations.update_member(transaction, call.audit, body, call.given)
    )
    limits = report_limits(member.allowance)
    return {
        "team_id": team.team_id,
        "user_id": user.user_id,
        "user_email": user.user_email,
        "role": member.role,
        "max_budget_in_team": limits["max_budget"],
        **{name: limits[name] for name in ("budget_duration", "tpm_limit", "rpm_limit", "model_max_budget")},
    }


@routes.post(
    "/team/member_delete",
    access=Access.SELF_SERVICE,
    body=RemoveMemberRequest,
    response=TeamReport,
    constraint=NAMES_USER,
    errors=(404,),
)
async def remove_member(call: AdminCall, body: RemoveMemberRequest) -> Json:
    """Remove a user from a team, and delete the user's keys of that team."""

    def work(transaction: Transaction) -> Json:
        return report_team(transaction, operations.remove_member(transaction, call.audit, body, call.given), call.now)

    return await call.change(work)
