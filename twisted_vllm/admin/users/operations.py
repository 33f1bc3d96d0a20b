"""What the user routes do: functions on one transaction. Each change is written to the audit log."""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import datetime

import attrs

from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.fields import redacted
from twisted_vllm.admin.keys import operations as keys
from twisted_vllm.admin.limits import report_usage
from twisted_vllm.admin.memberships import find_team, put_members
from twisted_vllm.admin.model_limits import check_limits_over_keys
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.users.models import NewUserRequest, UpdateUserRequest
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import Conflict, NotFound
from twisted_vllm.storage.records import Member, UserRecord
from twisted_vllm.storage.transaction import Transaction


def find(transaction: Transaction, user_id: str | None, email: str | None = None) -> UserRecord:
    """Return the user with an id, or else with an address.

    Raises:
        NotFound: there is none.
    """
    if user_id is not None:
        user = transaction.users.get(user_id)
        if user is None:
            raise NotFound(f"No user has the id `{redacted(user_id)}`.", param="user_id")
        return user
    found = transaction.users.find(user_email=(email or "").lower())
    if not found:
        raise NotFound("No user has this address.", param="user_email")
    return found[0]


def add(
    transaction: Transaction, audit: AuditContext, body: NewUserRequest, user_id: str, key: KeyRecord | None
) -> UserRecord:
    """Create a user with its first key, and add it to its teams.

    Args:
        transaction: the transaction.
        audit: who asks.
        body: the request.
        user_id: the id of the user.
        key: its first key; None for no key.

    Raises:
        Conflict: the user, its address or the key exists.
        InvalidRequest: a limit would never count.
        NotFound: one of the teams does not exist.
        RouteNotAllowed: keys that may administer have this user id, and the actor may not change those.
    """
    if transaction.users.get(user_id) is not None:
        raise Conflict("Another user has this id already. Send another `user_id`.", param="user_id")
    user = UserRecord(user_id=user_id, **body.values(body.__struct_fields__), **audit.created)
    audit.scope.check_user(None, user)
    _check_email_free(transaction, user)
    keys_of_user = transaction.keys.find(user_id=user_id)
    audit.scope.check_keys(transaction, *keys_of_user)
    check_limits_over_keys(user.allowance, keys_of_user)
    teams = [find_team(transaction, team_id, "teams") for team_id in dict.fromkeys(body.teams or ())]
    if key is not None:
        keys.insert(transaction, audit, key)
    transaction.users.insert(user)
    audit.record(transaction, "user", user_id, None, user)
    for team in teams:
        put_members(transaction, audit, team, [Member(team.team_id, user_id)])
    return user


def update(transaction: Transaction, audit: AuditContext, body: UpdateUserRequest, given: Container[str]) -> UserRecord:
    """Change a user.

    Args:
        transaction: the transaction.
        audit: who asks.
        body: the request.
        given: the names of the fields that it has.

    Raises:
        NotFound: there is no such user.
        Conflict: another user has the address.
        InvalidRequest: a limit would never count.
        RouteNotAllowed: the user has keys that may administer, and the actor may not change those.
    """
    user = find(transaction, body.user_id, body.user_email)
    changed = attrs.evolve(user, **body.values(given, user.allowance), **audit.updated)
    audit.scope.check_user(user, changed)
    _check_email_free(transaction, changed)
    keys_of_user = transaction.keys.find(user_id=user.user_id)
    audit.scope.check_keys(transaction, *keys_of_user)
    if changed.allowance != user.allowance:
        check_limits_over_keys(changed.allowance, keys_of_user)
    transaction.users.replace(user.user_id, changed)
    audit.record(transaction, "user", user.user_id, user, changed)
    return changed


def _check_email_free(transaction: Transaction, user: UserRecord) -> None:
    if user.user_email is None:
        return
    if any(each.user_id != user.user_id for each in transaction.users.find(user_email=user.user_email)):
        raise Conflict("Another user has this address already. Send another `user_email`.", param="user_email")


def delete(transaction: Transaction, audit: AuditContext, user_ids: Sequence[str]) -> int:
    """Delete users with their keys and memberships, all or none, and return how many.

    Raises:
        NotFound: one of them does not exist.
        RouteNotAllowed: the actor may not delete one of their keys.
    """
    users = [find(transaction, user_id) for user_id in dict.fromkeys(user_ids)]
    ids = [user.user_id for user in users]
    for user in users:
        audit.scope.check_user(user, None)
    keys.delete_records(transaction, audit, transaction.keys.among("user_id", ids))
    transaction.members.remove_all(user_ids=ids)
    transaction.users.delete(ids)
    transaction.spend.forget("user", ids)
    for user in users:
        audit.record(transaction, "user", user.user_id, user, None)
    return len(users)


def report_users(transaction: Transaction, users: Sequence[UserRecord], now: datetime) -> list[Json]:
    """Return users as `UserReport` describes them."""
    ids = [user.user_id for user in users]
    spend, memberships = transaction.spend.of("user", ids), transaction.members.of_users(ids)
    return [
        {
            **report_usage(user.allowance, spend[user.user_id], now),
            "user_id": user.user_id,
            "user_alias": user.user_alias,
            "user_email": user.user_email,
            "user_role": user.user_role,
            "models": user.models,
            "metadata": user.metadata,
            "teams": [member.team_id for member in memberships[user.user_id]],
            "created_at": user.created_at,
            "created_by": user.created_by,
            "updated_at": user.updated_at,
            "updated_by": user.updated_by,
        }
        for user in users
    ]


def report_user(transaction: Transaction, user: UserRecord, now: datetime) -> Json:
    """Return a user as `UserReport` describes it."""
    [report] = report_users(transaction, [user], now)
    return report
