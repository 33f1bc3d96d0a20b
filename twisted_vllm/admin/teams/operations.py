"""What the team routes do: functions on one transaction. Each change is written to the audit log."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from twisted_vllm.admin.budget_references import (
    budget_holder,
    budgets_of,
    check_budget,
    effective,
    effective_limits,
    holders_of,
    report_budget,
)
from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.field_rules import report_rules
from twisted_vllm.admin.fields import MAX_LENGTH, redacted, stored_models
from twisted_vllm.admin.keys import operations as keys
from twisted_vllm.admin.limits import report_usage
from twisted_vllm.admin.memberships import find_organization, find_team, put_members, roles_in
from twisted_vllm.admin.model_limits import (
    check_aliases_of_team,
    check_limits_of_key,
    check_limits_over_keys,
    with_names_of_team,
)
from twisted_vllm.admin.models import LISTED_MEMBERS, MAX_SHOWN, Json
from twisted_vllm.admin.scope import IScope
from twisted_vllm.admin.teams.models import (
    MAX_BULK_MEMBERS,
    BulkAddMembersRequest,
    NewMember,
    NewTeamRequest,
    RemoveMemberRequest,
    TeamFields,
    TeamModelsRequest,
    UpdateMemberRequest,
    UpdateTeamRequest,
)
from twisted_vllm.admin.users import operations as users
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import Conflict, GatewayError, InvalidRequest, NotFound
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, member_id, members_budget_id
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import BudgetRecord, Member, TeamRecord, UserRecord
from twisted_vllm.storage.transaction import Transaction


def add(transaction: Transaction, audit: AuditContext, body: NewTeamRequest, team_id: str) -> TeamRecord:
    """Create a team with its first members.

    Raises:
        Conflict: the team exists.
        InvalidRequest: a limit would never count, or a key is in another organization.
        NotFound: the budget or the organization does not exist.
        RouteNotAllowed: keys that may administer have this team id, and the actor may not change those.
    """
    if transaction.teams.get(team_id) is not None:
        raise Conflict("Another team has this id already. Send another `team_id`.", param="team_id")
    keys_of_team = transaction.keys.find(team_id=team_id)
    audit.scope.check_keys(transaction, *keys_of_team)
    team = TeamRecord(team_id=team_id, **body.values(body.__struct_fields__), **audit.created)
    _check_references(transaction, team, keys_of_team)
    _check_limits(transaction, team, keys_of_team)
    transaction.teams.insert(team)
    audit.record(transaction, "team", team_id, None, team)
    _set_member_limits(transaction, audit, team, body, body.__struct_fields__)
    if body.members_with_roles:
        add_members(transaction, audit, team, body.members_with_roles)
    return team


def update(transaction: Transaction, audit: AuditContext, body: UpdateTeamRequest, given: Container[str]) -> TeamRecord:
    """Change a team.

    Args:
        transaction: the transaction.
        audit: who asks.
        body: the request.
        given: the names of the fields that it has.

    Raises:
        NotFound: there is no such team, budget or organization.
        InvalidRequest: a limit would never count, or a key is in another organization.
        RouteNotAllowed: the team has keys that may administer, and the actor may not change those.
    """
    team = find_team(transaction, body.team_id)
    changed = _change(transaction, audit, team, body.values(given, team.allowance, team.fields, team.metadata))
    _set_member_limits(transaction, audit, changed, body, given)
    return changed


def _set_member_limits(
    transaction: Transaction, audit: AuditContext, team: TeamRecord, body: TeamFields, given: Container[str]
) -> None:
    """Set the limits that each member of a team has who sets none of its own: a budget that its members name."""
    budget_id = members_budget_id(team.team_id)
    budget = transaction.budgets.get(budget_id)
    before = UNLIMITED if budget is None else budget.allowance
    limits = body.member_limits(given, before)
    if limits == before:
        return
    if budget is not None:
        changed = attrs.evolve(budget, allowance=limits, **audit.updated)
        transaction.budgets.replace(budget_id, changed)
        audit.record(transaction, "budget", budget_id, budget, changed)
        return
    if len(budget_id) > MAX_LENGTH:
        raise InvalidRequest(
            "The team's id is too long for limits of its members: give each member its own with /team/member_update.",
            param="team_id",
        )
    made = BudgetRecord(budget_id, allowance=limits, **audit.created)
    transaction.budgets.insert(made)
    audit.record(transaction, "budget", budget_id, None, made)
    for member in transaction.members.of_teams([team.team_id])[team.team_id]:
        if member.budget_id is None:
            transaction.members.put(attrs.evolve(member, budget_id=budget_id))


def _check_references(transaction: Transaction, team: TeamRecord, keys_of_team: Sequence[KeyRecord]) -> None:
    """Check that what gives a team limits exists, and that no key of it is in another organization.

    Raises:
        NotFound: its budget or its organization does not exist.
        InvalidRequest: a key is in another organization.
    """
    check_budget(transaction, team.budget_id)
    if team.organization_id is None:
        return
    find_organization(transaction, team.organization_id)
    if any(key.organization_id not in (None, team.organization_id) for key in keys_of_team):
        raise InvalidRequest(
            "A key of this team is in another organization: take its `organization_id` out with /key/update first.",
            param="organization_id",
        )


def _check_limits(transaction: Transaction, team: TeamRecord, keys_of_team: Sequence[KeyRecord]) -> None:
    """Check that each limit of one model counts: those of the team, and those of its keys under the team's names."""
    named = [with_names_of_team(key, team.aliases) for key in keys_of_team]
    limits = effective_limits(transaction, team)
    check_limits_over_keys(limits, named)
    if team.aliases:
        check_aliases_of_team(team.aliases, limits)
        for key in named:
            check_limits_of_key(key, {"key": effective_limits(transaction, key)})


def set_blocked(transaction: Transaction, audit: AuditContext, team_id: str, blocked: bool) -> TeamRecord:
    """Block or unblock a team.

    Raises:
        NotFound, RouteNotAllowed: as `update`.
    """
    return _change(transaction, audit, find_team(transaction, team_id), {"blocked": blocked})


def _change(transaction: Transaction, audit: AuditContext, team: TeamRecord, values: Mapping[str, Any]) -> TeamRecord:
    keys_of_team = transaction.keys.find(team_id=team.team_id)
    audit.scope.check_keys(transaction, *keys_of_team)
    changed = attrs.evolve(team, **values, **audit.updated)
    if (changed.budget_id, changed.organization_id) != (team.budget_id, team.organization_id):
        _check_references(transaction, changed, keys_of_team)
    if (changed.allowance, changed.budget_id, changed.aliases) != (team.allowance, team.budget_id, team.aliases):
        _check_limits(transaction, changed, keys_of_team)
    transaction.teams.replace(team.team_id, changed)
    audit.record(transaction, "team", team.team_id, team, changed)
    return changed


def delete(transaction: Transaction, audit: AuditContext, team_ids: Sequence[str]) -> list[str]:
    """Delete teams with their keys and memberships, all or none, and return their ids.

    Raises:
        NotFound: one of them does not exist.
        RouteNotAllowed: the actor may not delete one of their keys.
    """
    teams = [find_team(transaction, team_id, "team_ids") for team_id in dict.fromkeys(team_ids)]
    ids = [team.team_id for team in teams]
    keys.delete_records(transaction, audit, transaction.keys.among("team_id", ids))
    transaction.members.remove_all(team_ids=ids)
    transaction.spend.forget_members(team_ids=ids)
    transaction.teams.delete(ids)
    transaction.spend.forget("team", ids)
    for team in teams:
        audit.record(transaction, "team", team.team_id, team, None)
        budget = transaction.budgets.get(members_budget_id(team.team_id))
        if budget is not None and not holders_of(transaction, budget.budget_id):
            transaction.budgets.delete([budget.budget_id])
            audit.record(transaction, "budget", budget.budget_id, budget, None)
    return ids


def add_members(
    transaction: Transaction,
    audit: AuditContext,
    team: TeamRecord,
    new: Sequence[NewMember],
    allowance: Allowance = UNLIMITED,
) -> list[UserRecord]:
    """Add users to a team and return them. A user whose id or address is unknown is created.

    Those who are members already stay what they are.

    Args:
        transaction: the transaction.
        audit: who asks.
        team: the team.
        new: the users.
        allowance: the limits of each of them in the team.

    Raises:
        InvalidRequest: a member has neither an id nor an address, or all are members already.
    """
    members = {each.user_id for each in transaction.members.of_teams([team.team_id])[team.team_id]}
    found = [users.find_or_add(transaction, audit, each.user_id, each.user_email) for each in new]
    added = {
        user.user_id: Member(team.team_id, user.user_id, each.role, allowance)
        for user, each in reversed(list(zip(found, new, strict=True)))
        if user.user_id not in members
    }
    if not added:
        who = "The user is" if len(new) == 1 else "All users are"
        raise InvalidRequest(f"{who} in the team already. Change a role with /team/member_update.", param="member")
    put_members(transaction, audit, team, list(added.values())[::-1])
    return list({user.user_id: user for user in found}.values())


def add_each_member(
    transaction: Transaction, audit: AuditContext, team: TeamRecord, body: BulkAddMembersRequest
) -> list[Json]:
    """Add members to a team, each on its own, and return the results as `AddedMember` describes them.

    Raises:
        InvalidRequest: there are more users than one request may add.
    """
    new: Sequence[NewMember] = body.members or ()
    if body.all_users:
        page = transaction.users.page(PageQuery(size=MAX_BULK_MEMBERS, sort_by="user_id", descending=False))
        if page.total_count > MAX_BULK_MEMBERS:
            raise InvalidRequest(
                f"There are {page.total_count} users, and one request adds {MAX_BULK_MEMBERS} at most: send them as "
                "`members`, in parts.",
                param="all_users",
            )
        new = [NewMember(user_id=user.user_id, user_email=user.user_email) for user in page.records]
    return [_add_one_member(transaction, audit, team, each, body.allowance) for each in new]


def _add_one_member(
    transaction: Transaction, audit: AuditContext, team: TeamRecord, new: NewMember, allowance: Allowance
) -> Json:
    try:
        [user] = add_members(transaction, audit, team, [new], allowance)
    except GatewayError as error:
        # Operations check before they write, so a refused one has changed nothing.
        return {
            "user_id": new.user_id,
            "user_email": new.user_email,
            "success": False,
            "error": error.message,
            "updated_user": None,
            "updated_team_membership": None,
        }
    return {
        "user_id": user.user_id,
        "user_email": user.user_email,
        "success": True,
        "error": None,
        "updated_user": users.report_user(transaction, user, audit.now),
        "updated_team_membership": report_memberships(
            transaction, [find_member(transaction, team.team_id, user.user_id)], audit.now
        )[0],
    }


def find_member(transaction: Transaction, team_id: str, user_id: str) -> Member:
    """Return the membership of a user in a team.

    Raises:
        NotFound: the user is not in the team.
    """
    member = transaction.members.get(team_id, user_id)
    if member is None:
        raise NotFound(f"`{redacted(user_id)}` is not a member of this team.", param="user_id")
    return member


def add_models(transaction: Transaction, audit: AuditContext, body: TeamModelsRequest) -> TeamRecord:
    """Allow a team more models; a team that could use all can use these alone from now on, as in LiteLLM.

    Raises:
        NotFound, RouteNotAllowed: as `update`.
    """
    team = find_team(transaction, body.team_id)
    models = tuple(dict.fromkeys((*team.models, *body.models)))
    return _change(transaction, audit, team, {"models": stored_models(models)})


def remove_models(transaction: Transaction, audit: AuditContext, body: TeamModelsRequest) -> TeamRecord:
    """Take models from a team.

    Raises:
        NotFound, RouteNotAllowed: as `update`.
        InvalidRequest: none would stay, which would allow all.
    """
    team = find_team(transaction, body.team_id)
    models = tuple(model for model in team.models if model not in body.models)
    if not models and team.models:
        raise InvalidRequest(
            "No model would stay, and an empty list allows all: block the team, or set its `models`.", param="models"
        )
    return _change(transaction, audit, team, {"models": models})


def administered_team(transaction: Transaction, scope: IScope, team_id: str, given: Mapping[str, Any]) -> TeamRecord:
    """Return a team whose members the caller may change as a request asks.

    Raises:
        NotFound: there is none with this id.
        RouteNotAllowed: the caller may not change its members, or not so.
    """
    missing = NotFound(f"No team has the id `{redacted(team_id)}`.", param="team_id")
    return scope.check_team(transaction, transaction.teams.get(team_id), missing, given)


def _named_member(
    transaction: Transaction, audit: AuditContext, team: TeamRecord, user_id: str | None, email: str | None
) -> Member:
    """Return the membership of a user whom a request names. Who only administers a team learns of no others.

    Raises:
        NotFound: there is no such user, or it is not in the team.
    """
    try:
        if user_id is None:
            user_id = users.find(transaction, None, email).user_id
        return find_member(transaction, team.team_id, user_id)
    except NotFound:
        if audit.scope.sees_all:
            raise
        raise NotFound("No such user is a member of this team.", param="user_id") from None


def update_member(
    transaction: Transaction, audit: AuditContext, body: UpdateMemberRequest, given: Mapping[str, Any]
) -> tuple[TeamRecord, UserRecord, Member]:
    """Change the role or the limits of a member, and return the team, the user and the membership.

    Raises:
        NotFound: there is no such team or user, or the user is not in the team.
        RouteNotAllowed: the actor may not change it.
    """
    team = administered_team(transaction, audit.scope, body.team_id, given)
    if audit.scope.sees_all:
        users.find(transaction, body.user_id, body.user_email)
    member = _named_member(transaction, audit, team, body.user_id, body.user_email)
    user = users.find(transaction, member.user_id)
    changed = attrs.evolve(member, role=body.role or member.role, allowance=body.limits(given, member.allowance))
    if changed != member:
        put_members(transaction, audit, team, [changed])
    return team, user, changed


def remove_member(
    transaction: Transaction, audit: AuditContext, body: RemoveMemberRequest, given: Mapping[str, Any]
) -> TeamRecord:
    """Remove a user from a team, and delete the user's keys of that team.

    Raises:
        NotFound: there is no such team.
        InvalidRequest: the user is not in it, as LiteLLM has it.
        RouteNotAllowed: the actor may not change the team, or not delete one of the keys.
    """
    team = administered_team(transaction, audit.scope, body.team_id, given)
    before = roles_in(transaction, team)
    try:
        member = _named_member(transaction, audit, team, body.user_id, body.user_email)
    except NotFound as error:
        # LiteLLM's status
        raise InvalidRequest(error.message, param=error.param) from None
    audit.scope.check_removal(member)
    user_id = member.user_id
    transaction.members.remove(team.team_id, user_id)
    if audit.scope.sees_all:
        # a member whom another member removed may come back in the same period
        transaction.spend.forget("member", [member_id(team.team_id, user_id)])
    keys.delete_records(transaction, audit, transaction.keys.find(user_id=user_id, team_id=team.team_id))
    audit.record(transaction, "team", team.team_id, before, roles_in(transaction, team))
    return team


def report_teams(
    transaction: Transaction,
    teams: Sequence[TeamRecord],
    now: datetime,
    most: int = LISTED_MEMBERS,
    after: str = "",
) -> list[Json]:
    """Return teams as `TeamReport` describes them.

    Args:
        transaction: the transaction.
        teams: the teams.
        now: the time.
        most: how many members of each to show at most.
        after: the user after whom they begin; empty for the first.
    """
    ids = [team.team_id for team in teams]
    counts = transaction.members.count_in(ids)
    spend, members = transaction.spend.of("team", ids), transaction.members.first_in(counts, most, after)
    shown = (member.user_id for each in members.values() for member in each)
    emails = transaction.users.values_of("user_email", shown)
    budgets = budgets_of(transaction, teams)
    of_members = {
        budget.budget_id: report_budget(budget_holder(budget), {})["litellm_budget_table"]
        for budget in transaction.budgets.among("budget_id", [members_budget_id(each) for each in ids])
    }
    return [
        {
            **report_usage(team.allowance, spend[team.team_id], now, effective(team, budgets)),
            **report_budget(team, budgets),
            "team_id": team.team_id,
            "team_alias": team.team_alias,
            "organization_id": team.organization_id,
            "model_aliases": team.aliases or {},
            "team_member_budget_table": of_members.get(members_budget_id(team.team_id)),
            "models": team.models,
            **report_rules(team.fields),
            "blocked": team.blocked,
            "log_bodies": team.log_bodies,
            "metadata": team.metadata,
            "members_with_roles": [
                {"role": member.role, "user_id": member.user_id, "user_email": emails.get(member.user_id)}
                for member in members[team.team_id]
            ],
            "members_count": counts[team.team_id],
            "created_at": team.created_at,
            "created_by": team.created_by,
            "updated_at": team.updated_at,
            "updated_by": team.updated_by,
        }
        for team in teams
    ]


def report_role(transaction: Transaction, team_id: str, user_id: str | None) -> list[Json]:
    """Return a user's own entry among the members of a team, as `MemberRole` describes it; none if it is no member."""
    member = None if user_id is None else transaction.members.get(team_id, user_id)
    if member is None:
        return []
    user = transaction.users.get(member.user_id)
    email = None if user is None else user.user_email
    return [{"role": member.role, "user_id": member.user_id, "user_email": email}]


def report_team(transaction: Transaction, team: TeamRecord, now: datetime) -> Json:
    """Return a team as `TeamReport` describes it."""
    [report] = report_teams(transaction, [team], now, MAX_SHOWN)
    return report


def report_memberships(transaction: Transaction, members: Sequence[Member], now: datetime) -> list[Json]:
    """Return memberships as `Membership` describes them."""
    spend = transaction.spend.of("member", [member_id(each.team_id, each.user_id) for each in members])
    budgets = budgets_of(transaction, members)
    found = []
    for member in members:
        spent = spend[member_id(member.team_id, member.user_id)]
        usage = report_usage(member.allowance, spent, now, effective(member, budgets))
        found.append(
            {
                "user_id": member.user_id,
                "team_id": member.team_id,
                **report_budget(member, budgets),
                **{name: usage[name] for name in ("spend", "total_spend", "budget_reset_at")},
            }
        )
    return found


def report_own_membership(transaction: Transaction, team_id: str, user_id: str, now: datetime) -> Json:
    """Return a membership as `OwnMembership` describes it.

    Raises:
        NotFound: the user is not in the team, or there is none; both are the same for the caller.
    """
    member = transaction.members.get(team_id, user_id)
    team = None if member is None else transaction.teams.get(team_id)
    if member is None or team is None:
        raise NotFound("The user of this key is no member of this team, or there is no such team.", param="team_id")
    user = transaction.users.get(user_id)
    return {
        **report_memberships(transaction, [member], now)[0],
        "role": member.role,
        "user_email": None if user is None else user.user_email,
        "team_alias": team.team_alias,
    }
