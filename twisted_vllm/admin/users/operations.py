"""What the user routes do: functions on one transaction. Each change is written to the audit log."""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import datetime

import attrs

from twisted_vllm.admin.budget_references import (
    budgets_of,
    check_budget,
    effective,
    effective_limits,
    report_budget,
)
from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.fields import check_member_named, redacted
from twisted_vllm.admin.keys import operations as keys
from twisted_vllm.admin.limits import allowance_in_team, report_usage
from twisted_vllm.admin.memberships import find_organization, find_team, put_members, put_organization_members
from twisted_vllm.admin.model_limits import check_limits_over_keys
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.parsing import parse_body, without_blanks
from twisted_vllm.admin.spending import set_given_spend
from twisted_vllm.admin.users.models import MAX_BULK_USERS, BulkUpdateUsersRequest, NewUserRequest, UpdateUserRequest
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import Conflict, GatewayError, InvalidRequest, NotFound
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import Member, OrganizationMember, UserRecord
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


def find_or_add(transaction: Transaction, audit: AuditContext, user_id: str | None, email: str | None) -> UserRecord:
    """Return the user with an id, or else with an address; one who is unknown is created.

    Raises:
        InvalidRequest: there is neither an id nor an address.
        Conflict: another user has the address.
    """
    check_member_named(user_id, email, "member")
    try:
        return find(transaction, user_id, email)
    except NotFound:
        made = audit.new_id() if user_id is None else user_id
        return add(transaction, audit, NewUserRequest(user_id=made, user_email=email), made, None)


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
        NotFound: the budget, a team or an organization does not exist.
        RouteNotAllowed: keys that may administer have this user id, and the actor may not change those.
    """
    if transaction.users.get(user_id) is not None:
        raise Conflict("Another user has this id already. Send another `user_id`.", param="user_id")
    user = UserRecord(user_id=user_id, **body.values(body.__struct_fields__), **audit.created)
    audit.scope.check_user(None, user)
    check_budget(transaction, user.budget_id)
    organizations = [
        find_organization(transaction, each, "organizations") for each in dict.fromkeys(body.organizations or ())
    ]
    _check_email_free(transaction, user)
    keys_of_user = transaction.keys.find(user_id=user_id)
    audit.scope.check_keys(transaction, *keys_of_user)
    check_limits_over_keys(effective_limits(transaction, user), keys_of_user)
    teams = [(find_team(transaction, each.team_id, "teams"), each) for each in body.memberships]
    if key is not None:
        keys.insert(transaction, audit, key)
    transaction.users.insert(user)
    audit.record(transaction, "user", user_id, None, user)
    set_given_spend(transaction, audit, "user", user_id, user, body.spend)
    for team, each in teams:
        member = Member(team.team_id, user_id, each.user_role, allowance_in_team(each.max_budget_in_team))
        put_members(transaction, audit, team, [member])
    for organization in organizations:
        member_of = OrganizationMember(organization.organization_id, user_id)
        put_organization_members(transaction, audit, organization, [member_of])
    return user


def update(transaction: Transaction, audit: AuditContext, body: UpdateUserRequest, given: Container[str]) -> UserRecord:
    """Change a user, or create it where it is not known.

    Args:
        transaction: the transaction.
        audit: who asks.
        body: the request.
        given: the names of the fields that it has.

    Raises:
        Conflict: another user has the address.
        InvalidRequest: a limit would never count.
        NotFound: the budget does not exist.
        RouteNotAllowed: the user has keys that may administer, and the actor may not change those.
    """
    try:
        user = find(transaction, body.user_id, body.user_email)
    except NotFound:
        fields = {name: getattr(body, name) for name in body.__struct_fields__}
        user_id = audit.new_id() if body.user_id is None else body.user_id
        return add(transaction, audit, NewUserRequest(**{**fields, "user_id": user_id}), user_id, None)
    changed = attrs.evolve(user, **body.values(given, user.allowance), **audit.updated)
    audit.scope.check_user(user, changed)
    _check_email_free(transaction, changed)
    keys_of_user = transaction.keys.find(user_id=user.user_id)
    audit.scope.check_keys(transaction, *keys_of_user)
    if changed.budget_id != user.budget_id:
        check_budget(transaction, changed.budget_id)
    if (changed.allowance, changed.budget_id) != (user.allowance, user.budget_id):
        check_limits_over_keys(effective_limits(transaction, changed), keys_of_user)
    transaction.users.replace(user.user_id, changed)
    audit.record(transaction, "user", user.user_id, user, changed)
    set_given_spend(transaction, audit, "user", changed.user_id, changed, body.spend)
    return changed


def update_each(transaction: Transaction, audit: AuditContext, body: BulkUpdateUsersRequest) -> Json:
    """Update several users, each on its own, and return the results.

    Raises:
        InvalidRequest: there are more users than one request may change.
    """
    requests: Sequence[Json] = body.users or ()
    if body.all_users:
        page = transaction.users.page(PageQuery(size=MAX_BULK_USERS, sort_by="user_id", descending=False))
        if page.total_count > MAX_BULK_USERS:
            raise InvalidRequest(
                f"There are {page.total_count} users, and one request changes {MAX_BULK_USERS} at most: send them as "
                "`users`, in parts.",
                param="all_users",
            )
        requests = [{**(body.user_updates or {}), "user_id": user.user_id} for user in page.records]
    results = [_update_one(transaction, audit, each) for each in requests]
    successful = sum(result["success"] for result in results)
    return {
        "results": results,
        "total_requested": len(results),
        "successful_updates": successful,
        "failed_updates": len(results) - successful,
    }


def _update_one(transaction: Transaction, audit: AuditContext, request: Json) -> Json:
    named = {name: request[name] for name in ("user_id", "user_email") if isinstance(request.get(name), str)}
    try:
        given = without_blanks(request)
        user = update(transaction, audit, parse_body(given, UpdateUserRequest), given)
    except GatewayError as error:
        # Operations check before they write, so a refused one has changed nothing.
        return {
            "user_id": None,
            "user_email": None,
            **{name: redacted(text) for name, text in named.items()},
            "success": False,
            "error": error.message,
            "updated_user": None,
        }
    return {
        "user_id": user.user_id,
        "user_email": user.user_email,
        "success": True,
        "error": None,
        "updated_user": report_user(transaction, user, audit.now),
    }


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
    transaction.organization_members.remove_all(user_ids=ids)
    transaction.users.delete(ids)
    transaction.spend.forget("user", ids)
    transaction.spend.forget_members(user_ids=ids)
    for user in users:
        audit.record(transaction, "user", user.user_id, user, None)
    return len(users)


def report_users(transaction: Transaction, users: Sequence[UserRecord], now: datetime) -> list[Json]:
    """Return users as `UserReport` describes them."""
    ids = [user.user_id for user in users]
    spend, memberships = transaction.spend.of("user", ids), transaction.members.of_users(ids)
    organizations, budgets = transaction.organization_members.of_users(ids), budgets_of(transaction, users)
    return [
        {
            **report_usage(user.allowance, spend[user.user_id], now, effective(user, budgets)),
            **report_budget(user, budgets),
            "user_id": user.user_id,
            "user_alias": user.user_alias,
            "user_email": user.user_email,
            "user_role": user.user_role,
            "models": user.models,
            "metadata": user.metadata,
            "organizations": [member.organization_id for member in organizations[user.user_id]],
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
