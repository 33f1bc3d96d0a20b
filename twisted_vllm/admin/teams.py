"""The endpoints of teams, in LiteLLM's shapes."""

from __future__ import annotations

from typing import Any

from twisted.web.iweb import IRequest

from twisted_vllm.admin import people
from twisted_vllm.admin.litellm import MEMBER_DEFAULTS
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.people_schemas import (
    DeleteTeamsRequest,
    RemoveMemberRequest,
    TeamRequest,
    UpdateMemberRequest,
    parse_add_members,
    parse_new_team,
    parse_update_team,
)
from twisted_vllm.admin.queries import TeamInfoQuery, TeamListQuery, parse_query
from twisted_vllm.admin.reports import report_keys, report_member, report_team, report_teams, report_users
from twisted_vllm.admin.respond import read_object, read_query, send_json
from twisted_vllm.admin.schemas import parse
from twisted_vllm.admin.users import new_id
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.transaction import Transaction


class TeamEndpoints:
    """Makes, shows, changes, blocks and deletes teams."""

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def new(self, request: IRequest) -> bytes:
        """Answer ``POST /team/new``: a team, with its first members."""
        act = self._office.act(request, "team/new")
        asked = parse_new_team(read_object(request))
        team_id = new_id(self._office) if asked.team_id is None else asked.team_id

        def work(transaction: Transaction) -> dict[str, Any]:
            return report_team(transaction, people.add_team(transaction, act, asked, team_id), act.now)

        return send_json(request, await self._office.change(work))

    async def info(self, request: IRequest) -> bytes:
        """Answer ``GET /team/info``: a team, its members and its keys."""
        self._office.gatekeeper.administrator_of(request)
        team_id = parse_query(read_query(request), TeamInfoQuery).team_id

        now = self._office.now()

        def work(transaction: Transaction) -> dict[str, Any]:
            team = people.find_team(transaction, team_id)
            return {
                "team_id": team_id,
                "team_info": report_team(transaction, team, now),
                "keys": report_keys(transaction, transaction.keys.find(team_id=team_id), now),
                "team_memberships": [
                    report_member(member) for member in transaction.members.of_teams([team_id])[team_id]
                ],
            }

        return send_json(request, await self._office.read(work))

    async def update(self, request: IRequest) -> bytes:
        """Answer ``POST /team/update``: what is absent stays, null clears."""
        act = self._office.act(request, "team/update")
        body = read_object(request)
        asked = parse_update_team(body)

        def work(transaction: Transaction) -> dict[str, Any]:
            return report_team(transaction, people.update_team(transaction, act, asked, body), act.now)

        return send_json(request, {"team_id": asked.team_id, "data": await self._office.change(work)})

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

        now = self._office.now()

        def work(transaction: Transaction) -> list[dict[str, Any]]:
            if user_id:
                ids = [member.team_id for member in transaction.members.of_users([user_id])[user_id]]
                return report_teams(transaction, transaction.teams.among("team_id", ids), now)
            return report_teams(transaction, transaction.teams.find(), now)

        return send_json(request, await self._office.read(work))

    async def block(self, request: IRequest) -> bytes:
        """Answer ``POST /team/block``: its keys are refused from the next request on."""
        return await self._set_blocked(request, True)

    async def unblock(self, request: IRequest) -> bytes:
        """Answer ``POST /team/unblock``: its keys work again."""
        return await self._set_blocked(request, False)

    async def _set_blocked(self, request: IRequest, blocked: bool) -> bytes:
        act = self._office.act(request, "team/block" if blocked else "team/unblock")
        asked = parse(read_object(request), TeamRequest, {})

        def work(transaction: Transaction) -> dict[str, Any]:
            return report_team(transaction, people.block_team(transaction, act, asked.team_id, blocked), act.now)

        return send_json(request, await self._office.change(work))

    async def add_members(self, request: IRequest) -> bytes:
        """Answer ``POST /team/member_add``: one member or several; a user that is not known yet is made."""
        act = self._office.act(request, "team/member_add")
        team_id, wanted = parse_add_members(read_object(request))

        def work(transaction: Transaction) -> dict[str, Any]:
            team = people.find_team(transaction, team_id)
            users = people.add_members(transaction, act, team, wanted)
            added = {user.user_id for user in users}
            members = transaction.members.of_teams([team.team_id])[team.team_id]
            return {
                **report_team(transaction, team, act.now),
                "updated_users": report_users(transaction, users, act.now),
                "updated_team_memberships": [report_member(member) for member in members if member.user_id in added],
            }

        return send_json(request, await self._office.change(work))

    async def update_member(self, request: IRequest) -> bytes:
        """Answer ``POST /team/member_update``: a member gets another role."""
        act = self._office.act(request, "team/member_update")
        asked = parse(read_object(request), UpdateMemberRequest, MEMBER_DEFAULTS)
        _check_named(asked)
        team, user, member = await self._office.change(
            lambda transaction: people.update_member(transaction, act, asked)
        )
        return send_json(
            request,
            {
                "team_id": team.team_id,
                "user_id": user.user_id,
                "user_email": user.user_email,
                "role": member.role,
                **dict.fromkeys(("max_budget_in_team", "tpm_limit", "rpm_limit")),
            },
        )

    async def remove_member(self, request: IRequest) -> bytes:
        """Answer ``POST /team/member_delete``: a user leaves a team, and loses the keys that it has there."""
        act = self._office.act(request, "team/member_delete")
        asked = parse(read_object(request), RemoveMemberRequest, {})
        _check_named(asked)

        def work(transaction: Transaction) -> dict[str, Any]:
            return report_team(transaction, people.remove_member(transaction, act, asked), act.now)

        return send_json(request, await self._office.change(work))


def _check_named(asked: UpdateMemberRequest | RemoveMemberRequest) -> None:
    if asked.user_id is None and asked.user_email is None:
        raise InvalidRequest("Name the member: `user_id`, or `user_email`.", param="user_id")
