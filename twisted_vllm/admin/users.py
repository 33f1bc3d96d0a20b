"""The endpoints of users, in LiteLLM's shapes."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import attrs
from twisted.web.iweb import IRequest

from twisted_vllm.access.keys import generate_key
from twisted_vllm.access.records import KeyRecord
from twisted_vllm.admin import key_operations, people
from twisted_vllm.admin.durations import expiry_of
from twisted_vllm.admin.listing import parse_users
from twisted_vllm.admin.office import Office
from twisted_vllm.admin.people_schemas import DeleteUsersRequest, parse_new_user, parse_update_user
from twisted_vllm.admin.queries import UserInfoQuery, parse_query
from twisted_vllm.admin.reports import report_key, report_team, report_user
from twisted_vllm.admin.respond import read_object, read_query, send_json
from twisted_vllm.admin.schemas import parse
from twisted_vllm.errors import InvalidRequest, NotFound, RouteNotAllowed
from twisted_vllm.store.records import Member, TeamRecord, UserRecord
from twisted_vllm.store.transaction import Transaction


@attrs.frozen
class _Whole:
    """A user with all that belongs to it."""

    user: UserRecord
    keys: list[KeyRecord]
    teams: list[TeamRecord]
    members: dict[str, list[Member]]


class UserEndpoints:
    """Makes, shows, changes and deletes users."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def new(self, request: IRequest) -> bytes:
        """Answer ``POST /user/new``: a user, and a key of its own unless that is not wanted."""
        act = self._office.act(request, "user/new")
        asked = parse_new_user(read_object(request))
        user_id = new_id(self._office) if asked.user_id is None else asked.user_id
        key = record = None
        if asked.auto_create_key is not False:
            key = generate_key(self._office.randbytes)
            values = {
                "user_id": user_id,
                "key_alias": asked.key_alias,
                "expires": expiry_of(asked.duration, act.now),
            }
            record = key_operations.new_record(key, self._office.randbytes(16).hex(), values, act)
        elif asked.key_alias is not None or asked.duration is not None:
            raise InvalidRequest("`key_alias` and `duration` are a key's, and none is made.", param="auto_create_key")
        user = await self._office.change(lambda transaction: people.add_user(transaction, act, asked, user_id, record))
        shown_key = {} if record is None else report_key(record, act.now)
        return send_json(
            request,
            {
                **shown_key,
                **report_user(user, asked.teams or ()),
                "key": key,
                "token_id": None if record is None else record.token,
            },
        )

    async def info(self, request: IRequest) -> bytes:
        """Answer ``GET /user/info``: any user for an administrator, its own for a virtual key."""
        principal = self._office.gatekeeper.principal_of(request)
        asked = parse_query(read_query(request), UserInfoQuery).user_id or principal.user_id
        if asked is None:
            raise InvalidRequest("Name the user: /user/info?user_id=…", param="user_id")
        if not principal.may_administer and asked != principal.user_id:
            raise RouteNotAllowed("A virtual key may see its own user only; the master key sees every user.")
        whole = await self._office.read(lambda transaction: _whole(transaction, asked))
        now = self._office.now()
        # who else is in a team, and what is written about it, is for administrators
        teams = [
            report_team(team, whole.members[team.team_id])
            if principal.may_administer
            else {"team_id": team.team_id, "team_alias": team.team_alias, "models": team.models}
            for team in whole.teams
        ]
        return send_json(
            request,
            {
                "user_id": asked,
                "user_info": report_user(whole.user, [team.team_id for team in whole.teams]),
                "keys": [report_key(record, now) for record in whole.keys],
                "teams": teams,
            },
        )

    async def update(self, request: IRequest) -> bytes:
        """Answer ``POST /user/update``: what is absent stays, null clears."""
        act = self._office.act(request, "user/update")
        body = read_object(request)
        asked = parse_update_user(body)

        def work(transaction: Transaction) -> tuple[UserRecord, list[str]]:
            user = people.update_user(transaction, act, asked, body)
            return user, _teams_of(transaction, [user.user_id])[user.user_id]

        user, teams = await self._office.change(work)
        return send_json(request, {"user_id": user.user_id, "data": report_user(user, teams)})

    async def delete(self, request: IRequest) -> bytes:
        """Answer ``POST /user/delete``: all that were named, with their keys, or none; the answer is how many."""
        act = self._office.act(request, "user/delete")
        asked = parse(read_object(request), DeleteUsersRequest, {})
        count = await self._office.change(lambda transaction: people.delete_users(transaction, act, asked.user_ids))
        return send_json(request, count)

    async def list_users(self, request: IRequest) -> bytes:
        """Answer ``GET /user/list``: a page of users, each with how many keys it has."""
        self._office.gatekeeper.administrator_of(request)
        query = parse_users(read_query(request))

        def work(transaction: Transaction) -> tuple[Any, dict[str, list[str]], dict[str, int]]:
            page = transaction.users.page(query)
            ids = [user.user_id for user in page.records]
            return page, _teams_of(transaction, ids), transaction.keys.count_by("user_id", ids)

        page, teams, counts = await self._office.read(work)
        return send_json(
            request,
            {
                "users": [
                    {**report_user(user, teams[user.user_id]), "key_count": counts.get(user.user_id, 0)}
                    for user in page.records
                ],
                "total": page.total_count,
                "page": page.current_page,
                "page_size": query.size,
                "total_pages": page.total_pages,
            },
        )


def new_id(office: Office) -> str:
    """Return a random id of a user or a team."""
    return str(UUID(bytes=office.randbytes(16), version=4))


def _teams_of(transaction: Transaction, user_ids: list[str]) -> dict[str, list[str]]:
    found = transaction.members.of_users(user_ids)
    return {user_id: [member.team_id for member in members] for user_id, members in found.items()}


def _whole(transaction: Transaction, user_id: str) -> _Whole:
    user = transaction.users.get(user_id)
    if user is None:
        raise NotFound("No such user is known.", param="user_id")
    teams = _teams_of(transaction, [user_id])[user_id]
    return _Whole(
        user=user,
        keys=transaction.keys.find(user_id=user_id),
        teams=transaction.teams.among("team_id", teams),
        members=transaction.members.of_teams(teams),
    )
