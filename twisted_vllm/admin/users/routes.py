"""The routes of users, in LiteLLM's shapes."""

from __future__ import annotations

from collections.abc import Sequence

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.authorization import check_sees_user
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.defaults import with_user_defaults
from twisted_vllm.admin.fields import NAMES_USER
from twisted_vllm.admin.keys import operations as keys
from twisted_vllm.admin.keys.answers import FoundUser
from twisted_vllm.admin.keys.upper_bounds import bounded_allowance, bounded_expiry
from twisted_vllm.admin.limits import LimitFields
from twisted_vllm.admin.lists import ids_of, place_of, reported
from twisted_vllm.admin.models import MAX_SHOWN, Json, NoQuery
from twisted_vllm.admin.routing import Routes
from twisted_vllm.admin.teams.operations import report_teams
from twisted_vllm.admin.users import operations
from twisted_vllm.admin.users.models import (
    ROLE_WORDS,
    BulkUpdateUsersRequest,
    ChangedUser,
    DeleteUsersRequest,
    NewUser,
    NewUserRequest,
    RoleWords,
    UpdatedUsers,
    UpdateUserRequest,
    UserFilterQuery,
    UserInfo,
    UserInfoQuery,
    UserList,
    UserListQuery,
    UserReport,
)
from twisted_vllm.admin.users.operations import report_user, report_users
from twisted_vllm.auth.authenticator import generate_key
from twisted_vllm.errors import NotFound
from twisted_vllm.ratelimit.allowance import UNLIMITED
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import UserRecord
from twisted_vllm.storage.transaction import Transaction

routes = Routes()


@routes.post(
    "/user/new",
    body=NewUserRequest,
    response=NewUser,
    constraint={
        "anyOf": [
            {"properties": {"auto_create_key": {"enum": [True, None]}}},
            {
                "properties": {
                    "key_alias": {"type": "null"},
                    "duration": {"type": "null"},
                    "aliases": {"anyOf": [{"type": "null"}, {"maxProperties": 0}]},
                }
            },
        ]
    },
    may_be_empty=True,
    errors=(404, 409),
)
async def new(call: AdminCall, body: NewUserRequest) -> Json:
    """Create a user, and a key for it unless `auto_create_key` is false."""
    body = with_user_defaults(body, call.given, call.context.record_defaults)
    user_id = call.new_id() if body.user_id is None else body.user_id
    key = record = None
    if body.auto_create_key is not False:
        key = generate_key(call.context.randbytes)
        bounds = call.audit.key_bounds
        values = {
            "user_id": user_id,
            "key_alias": body.key_alias,
            "team_id": body.team_id,
            "aliases": body.aliases or {},
            "expires": bounded_expiry(bounds, body.duration, call.now),
            "allowance": bounded_allowance(bounds, UNLIMITED, LimitFields.ATTRIBUTES, call.now),
        }
        record = keys.new_record(key, values, call.audit)

    def work(transaction: Transaction) -> Json:
        user = operations.add(transaction, call.audit, body, user_id, record)
        return {
            **({} if record is None else keys.report_key(transaction, record, call.now)),
            **report_user(transaction, user, call.now),
            "teams": [each.team_id for each in body.memberships],
            "key": key,
            "token_id": None if record is None else record.token,
        }

    return await call.change(work)


@routes.get("/user/info", query=UserInfoQuery, response=UserInfo, access=Access.ANY_KEY, errors=(404,))
async def info(call: AdminCall, query: UserInfoQuery) -> Json:
    """Return a user with its keys and teams. A virtual key sees its own user, an administrator every user."""
    sees_all = call.scope.sees_all
    user_id = _visible_user(call, query)

    def work(transaction: Transaction) -> Json:
        report = report_user(transaction, _user_of(transaction, user_id), call.now)
        teams = transaction.teams.among("team_id", report["teams"])
        owned = transaction.keys.page(PageQuery(size=MAX_SHOWN, equals={"user_id": user_id}))
        return {
            "user_id": user_id,
            "user_info": {**report, "teams": [team.team_id for team in teams]},
            "keys": reported(owned.records, lambda some: keys.report_keys(transaction, some, call.now)),
            "keys_count": owned.total_count,
            # Only administrators see the other members of a team, and its metadata.
            "teams": reported(teams, lambda some: report_teams(transaction, some, call.now))
            if sees_all
            else [{"team_id": team.team_id, "team_alias": team.team_alias, "models": team.models} for team in teams],
        }

    return await call.read(work)


@routes.get("/v2/user/info", query=UserInfoQuery, response=UserReport, access=Access.ANY_KEY, errors=(404,))
async def info_alone(call: AdminCall, query: UserInfoQuery) -> Json:
    """Return a user without its keys. A virtual key sees its own user, an administrator every user."""
    user_id = _visible_user(call, query)
    return await call.read(lambda transaction: report_user(transaction, _user_of(transaction, user_id), call.now))


def _visible_user(call: AdminCall, query: UserInfoQuery) -> str:
    """Return the id of the user that a request asks for.

    Raises:
        NotFound: it names none, and the caller has none.
        RouteNotAllowed: the caller may not see it.
    """
    user_id = query.user_id or call.principal.user_id
    if user_id is None:
        raise NotFound("The caller is no user's key. Name the user: ?user_id=…", param="user_id")
    check_sees_user(call.principal, user_id)
    return user_id


def _user_of(transaction: Transaction, user_id: str) -> UserRecord:
    user = transaction.users.get(user_id)
    if user is None:
        raise NotFound("No such user is known.", param="user_id")
    return user


@routes.post(
    "/user/update",
    body=UpdateUserRequest,
    response=ChangedUser,
    constraint=NAMES_USER,
    errors=(404, 409),
)
async def update(call: AdminCall, body: UpdateUserRequest) -> Json:
    """Change a user, or create it. Fields that are absent stay as they are; null clears a field."""

    def work(transaction: Transaction) -> Json:
        user = operations.update(transaction, call.audit, body, call.given)
        return {"user_id": user.user_id, "data": report_user(transaction, user, call.now)}

    return await call.change(work)


@routes.post(
    "/user/bulk_update",
    body=BulkUpdateUsersRequest,
    response=UpdatedUsers,
    constraint={
        "oneOf": [
            {
                "required": ["users"],
                "properties": {
                    "users": {"type": "array"},
                    "all_users": {"enum": [False, None]},
                    "user_updates": {"type": "null"},
                },
            },
            {
                "required": ["all_users", "user_updates"],
                "properties": {
                    "users": {"type": "null"},
                    "all_users": {"const": True},
                    "user_updates": {
                        "type": "object",
                        "properties": {"user_id": {"type": "null"}, "user_email": {"type": "null"}},
                    },
                },
            },
        ]
    },
)
async def bulk_update(call: AdminCall, body: BulkUpdateUsersRequest) -> Json:
    """Change several users, or all. Each is changed on its own, and the response has a result for each."""
    return await call.change(lambda transaction: operations.update_each(transaction, call.audit, body))


@routes.post("/user/delete", body=DeleteUsersRequest, response=int, errors=(404,))
async def delete(call: AdminCall, body: DeleteUsersRequest) -> int:
    """Delete users with their keys, and return how many: all that the request names, or none if one does not exist."""
    return await call.change(lambda transaction: operations.delete(transaction, call.audit, body.user_ids))


@routes.get("/user/available_roles", access=Access.ANY_KEY, query=NoQuery, response=dict[str, RoleWords])
async def roles(_call: AdminCall, _query: NoQuery) -> Json:
    """Return the roles that users may have."""
    return {role: {"description": words, "ui_label": label} for role, (words, label) in ROLE_WORDS.items()}


@routes.get("/user/filter/ui", query=UserFilterQuery, response=tuple[FoundUser, ...])
async def find_users(call: AdminCall, query: UserFilterQuery) -> list[Json]:
    """Return users by a part of the id or the address, the newest first, for a choice."""

    def work(transaction: Transaction) -> list[Json]:
        return [keys.report_name(user) for user in transaction.users.page(query.page_query()).records]

    return await call.read(work)


@routes.get("/user/list", query=UserListQuery, response=UserList)
async def list_users(call: AdminCall, query: UserListQuery) -> Json:
    """Return a page of users, each with the number of its keys."""

    def work(transaction: Transaction) -> Json:
        conditions = [transaction.members.are_in([query.team])] if query.team else []
        if query.organization_ids:
            ids = ids_of(query.organization_ids, "organization_ids")
            conditions.append(transaction.organization_members.are_in(ids))
        page = transaction.users.page(query.page_query(), *conditions)
        counts = transaction.keys.count_by("user_id", [user.user_id for user in page.records])

        def report(users: Sequence[UserRecord]) -> list[Json]:
            return [
                {**each, "key_count": counts.get(each["user_id"], 0)}
                for each in report_users(transaction, users, call.now)
            ]

        return {
            "users": reported(page.records, report),
            **place_of(page, query.page_size),
        }

    return await call.read(work)
