"""The endpoints of teams, in LiteLLM's shapes."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.web.iweb import IRequest

from twisted_vllm.access.records import KeyRecord
from twisted_vllm.admin import people
from twisted_vllm.admin.office import Office
from twisted_vllm.admin.people_schemas import (
    AddMembersRequest,
    DeleteTeamsRequest,
    NewMember,
    RemoveMemberRequest,
    TeamRequest,
    parse_new_team,
    parse_update_team,
)
from twisted_vllm.admin.queries import TeamInfoQuery, TeamListQuery, parse_query
from twisted_vllm.admin.reports import report_key, report_team, report_user
from twisted_vllm.admin.respond import read_object, read_query, send_json
from twisted_vllm.admin.schemas import parse
from twisted_vllm.admin.users import new_id
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.store.records import Member, TeamRecord, UserRecord
from twisted_vllm.store.transaction import Transaction


@attrs.frozen
class _Whole:
    """A team with its members, and its keys where they were asked for."""

    team: TeamRecord
    members: list[Member]
    keys: list[KeyRecord] = attrs.field(factory=list)


class TeamEndpoints:
    """Makes, shows, changes, blocks and deletes teams."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def new(self, request: IRequest) -> bytes:
        """Answer ``POST /team/new``: a team, with its first members."""
        act = self._office.act(request, "team/new")
        asked = parse_new_team(read_object(request))
        team_id = new_id(self._office) if asked.team_id is None else asked.team_id
        whole = await self._office.change(
            lambda transaction: _with_members(transaction, people.add_team(transaction, act, asked, team_id))
        )
        return send_json(request, report_team(whole.team, whole.members))

    async def info(self, request: IRequest) -> bytes:
        """Answer ``GET /team/info``: a team, its members and its keys."""
        self._office.gatekeeper.administrator_of(request)
        team_id = parse_query(read_query(request), TeamInfoQuery).team_id

        def work(transaction: Transaction) -> _Whole:
            team = people.find_team(transaction, team_id)
            return attrs.evolve(_with_members(transaction, team), keys=transaction.keys.find(team_id=team_id))

        whole = await self._office.read(work)
        now = self._office.now()
        return send_json(
            request,
            {
                "team_id": team_id,
                "team_info": report_team(whole.team, whole.members),
                "keys": [report_key(record, now) for record in whole.keys],
                "team_memberships": [_membership(member) for member in whole.members],
            },
        )

    async def update(self, request: IRequest) -> bytes:
        """Answer ``POST /team/update``: what is absent stays, null clears."""
        act = self._office.act(request, "team/update")
        body = read_object(request)
        asked = parse_update_team(body)
        whole = await self._office.change(
            lambda transaction: _with_members(transaction, people.update_team(transaction, act, asked, body))
        )
        return send_json(request, {"team_id": asked.team_id, "data": report_team(whole.team, whole.members)})

    async def delete(self, request: IRequest) -> bytes:
        """Answer ``POST /team/delete``: all that were named, with their keys, or none."""
        act = self._office.act(request, "team/delete")
        asked = parse(read_object(request), DeleteTeamsRequest, {})
        deleted = await self._office.change(lambda transaction: people.delete_teams(transaction, act, asked.team_ids))
        return send_json(request, {"deleted_teams": deleted})

    async def list_teams(self, request: IRequest) -> bytes:
        """Answer ``GET /team/list``: every team, or those of a user."""
        self._office.gatekeeper.administrator_of(request)
        user_id = parse_query(read_query(request), TeamListQuery, {"organization_id": None}).user_id

        def work(transaction: Transaction) -> tuple[list[TeamRecord], dict[str, list[Member]]]:
            if user_id:
                ids = [member.team_id for member in transaction.members.of_users([user_id])[user_id]]
                teams = transaction.teams.among("team_id", ids)
            else:
                teams = transaction.teams.find()
            return teams, transaction.members.of_teams([team.team_id for team in teams])

        teams, members = await self._office.read(work)
        return send_json(request, [report_team(team, members[team.team_id]) for team in teams])

    async def block(self, request: IRequest) -> bytes:
        """Answer ``POST /team/block``: its keys are refused from the next request on."""
        return await self._set_blocked(request, True)

    async def unblock(self, request: IRequest) -> bytes:
        """Answer ``POST /team/unblock``: its keys work again."""
        return await self._set_blocked(request, False)

    async def _set_blocked(self, request: IRequest, blocked: bool) -> bytes:
        act = self._office.act(request, "team/block" if blocked else "team/unblock")
        asked = parse(read_object(request), TeamRequest, {})

        def work(transaction: Transaction) -> _Whole:
            return _with_members(transaction, people.change_team(transaction, act, asked.team_id, {"blocked": blocked}))

        whole = await self._office.change(work)
        return send_json(request, report_team(whole.team, whole.members))

    async def add_members(self, request: IRequest) -> bytes:
        """Answer ``POST /team/member_add``: one member or several; a user that is not known yet is made."""
        act = self._office.act(request, "team/member_add")
        asked = parse(read_object(request), AddMembersRequest, {"max_budget_in_team": None})
        wanted = (asked.member,) if isinstance(asked.member, NewMember) else asked.member

        def work(transaction: Transaction) -> tuple[_Whole, list[UserRecord], dict[str, list[Member]]]:
            team = people.find_team(transaction, asked.team_id)
            users = people.add_members(transaction, act, team, wanted)
            memberships = transaction.members.of_users([user.user_id for user in users])
            return _with_members(transaction, team), users, memberships

        whole, users, memberships = await self._office.change(work)
        added = {user.user_id for user in users}
        return send_json(
            request,
            {
                **report_team(whole.team, whole.members),
                "updated_users": [
                    report_user(user, [member.team_id for member in memberships[user.user_id]]) for user in users
                ],
                "updated_team_memberships": [
                    _membership(member) for member in whole.members if member.user_id in added
                ],
            },
        )

    async def remove_member(self, request: IRequest) -> bytes:
        """Answer ``POST /team/member_delete``: a user leaves a team, and loses the keys that it has there."""
        act = self._office.act(request, "team/member_delete")
        asked = parse(read_object(request), RemoveMemberRequest, {})
        if asked.user_id is None and asked.user_email is None:
            raise InvalidRequest("Name the member: `user_id`, or `user_email`.", param="user_id")
        whole = await self._office.change(
            lambda transaction: _with_members(transaction, people.remove_member(transaction, act, asked))
        )
        return send_json(request, report_team(whole.team, whole.members))


def _with_members(transaction: Transaction, team: TeamRecord) -> _Whole:
    return _Whole(team, transaction.members.of_teams([team.team_id])[team.team_id])


def _membership(member: Member) -> dict[str, Any]:
    return {"user_id": member.user_id, "team_id": member.team_id, "budget_id": None, "litellm_budget_table": None}
