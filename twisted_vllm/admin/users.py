"""The endpoints of users, in LiteLLM's shapes."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from twisted.web.iweb import IRequest

from twisted_vllm.admin import key_operations, people
from twisted_vllm.admin.durations import expiry_of
from twisted_vllm.admin.listing import parse_users
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.people_schemas import DeleteUsersRequest, parse_new_user, parse_update_user
from twisted_vllm.admin.queries import UserInfoQuery, parse_query
from twisted_vllm.admin.reports import report_key, report_keys, report_teams, report_user, report_users
from twisted_vllm.admin.respond import read_object, read_query, send_json
from twisted_vllm.admin.schemas import parse
from twisted_vllm.auth.authenticator import generate_key
from twisted_vllm.errors import InvalidRequest, NotFound, RouteNotAllowed
from twisted_vllm.storage.transaction import Transaction


class UserEndpoints:
    """Makes, shows, changes and deletes users."""

    def __init__(self, office: AdminContext) -> None:
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

        def work(transaction: Transaction) -> dict[str, Any]:
            user = people.add_user(transaction, act, asked, user_id, record)
            shown_key = {} if record is None else report_key(transaction, record, act.now)
            return {
                **shown_key,
                **report_user(transaction, user, act.now),
                "teams": asked.teams or (),
                "key": key,
                "token_id": None if record is None else record.token,
            }

        return send_json(request, await self._office.change(work))

    async def info(self, request: IRequest) -> bytes:
        """Answer ``GET /user/info``: any user for an administrator, its own for a virtual key."""
        principal = self._office.gatekeeper.principal_of(request)
        asked = parse_query(read_query(request), UserInfoQuery).user_id or principal.user_id
        if asked is None:
            raise NotFound("The caller is no user's key. Name the user: /user/info?user_id=…", param="user_id")
        if not principal.may_administer and asked != principal.user_id:
            raise RouteNotAllowed("A virtual key may see its own user only; the master key sees every user.")
        now = self._office.now()
        sees_all = principal.may_administer
        return send_json(
            request, await self._office.read(lambda transaction: _whole(transaction, asked, now, sees_all))
        )

    async def update(self, request: IRequest) -> bytes:
        """Answer ``POST /user/update``: what is absent stays, null clears."""
        act = self._office.act(request, "user/update")
        body = read_object(request)
        asked = parse_update_user(body)

        def work(transaction: Transaction) -> dict[str, Any]:
            user = people.update_user(transaction, act, asked, body)
            return {"user_id": user.user_id, "data": report_user(transaction, user, act.now)}

        return send_json(request, await self._office.change(work))

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

        now = self._office.now()

        def work(transaction: Transaction) -> dict[str, Any]:
            page = transaction.users.page(query)
            counts = transaction.keys.count_by("user_id", [user.user_id for user in page.records])
            return {
                "users": [
                    {**report, "key_count": counts.get(report["user_id"], 0)}
                    for report in report_users(transaction, page.records, now)
                ],
                "total": page.total_count,
                "page": page.current_page,
                "page_size": query.size,
                "total_pages": page.total_pages,
            }

        return send_json(request, await self._office.read(work))


def new_id(office: AdminContext) -> str:
    """Return a random id of a user or a team."""
    return str(UUID(bytes=office.randbytes(16), version=4))


def _whole(transaction: Transaction, user_id: str, now: datetime, sees_all: bool) -> dict[str, Any]:
    user = transaction.users.get(user_id)
    if user is None:
        raise NotFound("No such user is known.", param="user_id")
    report = report_user(transaction, user, now)
    teams = transaction.teams.among("team_id", report["teams"])
    return {
        "user_id": user_id,
        "user_info": {**report, "teams": [team.team_id for team in teams]},
        "keys": report_keys(transaction, transaction.keys.find(user_id=user_id), now),
        # who else is in a team, and what is written about it, is for administrators
        "teams": report_teams(transaction, teams, now)
        if sees_all
        else [{"team_id": team.team_id, "team_alias": team.team_alias, "models": team.models} for team in teams],
    }
