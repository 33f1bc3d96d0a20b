"""What the team routes do: functions on one transaction. Each change is written to the audit log."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.field_rules import report_rules
from twisted_vllm.admin.fields import redacted
from twisted_vllm.admin.keys import operations as keys
from twisted_vllm.admin.limits import report_usage
from twisted_vllm.admin.memberships import find_team, put_members, roles_in
from twisted_vllm.admin.model_limits import check_limits_over_keys
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.scope import IScope
from twisted_vllm.admin.teams.models import (
    NewMember,
    NewTeamRequest,
    RemoveMemberRequest,
    UpdateMemberRequest,
    UpdateTeamRequest,
)
from twisted_vllm.admin.users import operations as users
from twisted_vllm.admin.users.models import NewUserRequest
from twisted_vllm.errors import Conflict, InvalidRequest, NotFound
from twisted_vllm.storage.records import Member, TeamRecord, UserRecord
from twisted_vllm.storage.transaction import Transaction


def add(transaction: Transaction, audit: AuditContext, body: NewTeamRequest, team_id: str) -> TeamRecord:
    """Create a team with its first members.

    Raises:
        Conflict: the team exists.
        InvalidRequest: a limit would never count.
        RouteNotAllowed: keys that may administer have this team id, and the actor may not change those.
    """
    if transaction.teams.get(team_id) is not None:
        raise Conflict("Another team has this id already. Send another `team_id`.", param="team_id")
    keys_of_team = transaction.keys.find(team_id=team_id)
    audit.scope.check_keys(transaction, *keys_of_team)
    team = TeamRecord(team_id=team_id, **body.values(body.__struct_fields__), **audit.created)
    check_limits_over_keys(team.allowance, keys_of_team)
    transaction.teams.insert(team)
    audit.record(transaction, "team", team_id, None, team)
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
        NotFound: there is no such team.
        InvalidRequest: a limit would never count.
        RouteNotAllowed: the team has keys that may administer, and the actor may not change those.
    """
    team = find_team(transaction, body.team_id)
    return _change(transaction, audit, team, body.values(given, team.allowance, team.fields))


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
    if changed.allowance != team.allowance:
        check_limits_over_keys(changed.allowance, keys_of_team)
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
    transaction.teams.delete(ids)
    transaction.spend.forget("team", ids)
    for team in teams:
        audit.record(transaction, "team", team.team_id, team, None)
    return ids


def add_members(
    transaction: Transaction, audit: AuditContext, team: TeamRecord, new: Sequence[NewMember]
) -> list[UserRecord]:
    """Add users to a team and return them. A user whose id is unknown is created.

    Raises:
        InvalidRequest: a member has neither an id nor an address.
        NotFound: no user has an address.
    """
    found = [_find_or_add_user(transaction, audit, each) for each in new]
    members = [
        attrs.evolve(_membership(transaction, team, user), role=each.role)
        for user, each in zip(found, new, strict=True)
    ]
    put_members(transaction, audit, team, members)
    return found


def _membership(transaction: Transaction, team: TeamRecord, user: UserRecord) -> Member:
    """Return the membership of a user, with the limits that it has, or a new one."""
    return transaction.members.get(team.team_id, user.user_id) or Member(team.team_id, user.user_id)


def _find_or_add_user(transaction: Transaction, audit: AuditContext, new: NewMember) -> UserRecord:
    if new.user_id is None and new.user_email is None:
        raise InvalidRequest("Name the member: `user_id`, or `user_email`.", param="member")
    if new.user_id is None or transaction.users.get(new.user_id) is not None:
        return users.find(transaction, new.user_id, new.user_email)
    body = NewUserRequest(user_id=new.user_id, user_email=new.user_email)
    return users.add(transaction, audit, body, new.user_id, None)


def administered_team(transaction: Transaction, scope: IScope, team_id: str, given: Mapping[str, Any]) -> TeamRecord:
    """Return a team whose members the caller may change as a request asks.

    Raises:
        NotFound: there is none with this id.
        RouteNotAllowed: the caller may not change its members, or not so.
    """
    missing = NotFound(f"No team has the id `{redacted(team_id)}`.", param="team_id")
    return scope.check_team(transaction, transaction.teams.get(team_id), missing, given)


def update_member(
    transaction: Transaction, audit: AuditContext, body: UpdateMemberRequest, given: Mapping[str, Any]
) -> tuple[TeamRecord, UserRecord, Member]:
    """Change the role of a member, and return the team, the user and the membership.

    Raises:
        NotFound: there is no such team or user, or the user is not in the team.
        RouteNotAllowed: the actor may not change it.
    """
    team = administered_team(transaction, audit.scope, body.team_id, given)
    user = users.find(transaction, body.user_id, body.user_email)
    for member in transaction.members.of_teams([team.team_id])[team.team_id]:
        if member.user_id == user.user_id:
            if body.role is not None and body.role != member.role:
                member = attrs.evolve(member, role=body.role)
                put_members(transaction, audit, team, [member])
            return team, user, member
    raise _not_a_member(user.user_id)


def remove_member(
    transaction: Transaction, audit: AuditContext, body: RemoveMemberRequest, given: Mapping[str, Any]
) -> TeamRecord:
    """Remove a user from a team, and delete the user's keys of that team.

    Raises:
        NotFound: there is no such team, or the user is not in it.
        RouteNotAllowed: the actor may not change the team, or not delete one of the keys.
    """
    team = administered_team(transaction, audit.scope, body.team_id, given)
    user_id = body.user_id
    if user_id is None:
        user_id = users.find(transaction, None, body.user_email).user_id
    before = roles_in(transaction, team)
    if not transaction.members.remove(team.team_id, user_id):
        raise _not_a_member(user_id)
    keys.delete_records(transaction, audit, transaction.keys.find(user_id=user_id, team_id=team.team_id))
    audit.record(transaction, "team", team.team_id, before, roles_in(transaction, team))
    return team


def _not_a_member(user_id: str) -> NotFound:
    return NotFound(f"`{redacted(user_id)}` is not a member of this team.", param="user_id")


def report_teams(transaction: Transaction, teams: Sequence[TeamRecord], now: datetime) -> list[Json]:
    """Return teams as `TeamReport` describes them."""
    ids = [team.team_id for team in teams]
    spend, members = transaction.spend.of("team", ids), transaction.members.of_teams(ids)
    return [
        {
            **report_usage(team.allowance, spend[team.team_id], now),
            "team_id": team.team_id,
            "team_alias": team.team_alias,
            "organization_id": None,
            "models": team.models,
            **report_rules(team.fields),
            "blocked": team.blocked,
            "metadata": team.metadata,
            "members_with_roles": [
                {"role": member.role, "user_id": member.user_id, "user_email": None} for member in members[team.team_id]
            ],
            "created_at": team.created_at,
            "created_by": team.created_by,
            "updated_at": team.updated_at,
            "updated_by": team.updated_by,
        }
        for team in teams
    ]


def report_team(transaction: Transaction, team: TeamRecord, now: datetime) -> Json:
    """Return a team as `TeamReport` describes it."""
    [report] = report_teams(transaction, [team], now)
    return report


def report_membership(member: Member) -> Json:
    """Return a membership as `Membership` describes it."""
    return {"user_id": member.user_id, "team_id": member.team_id, "budget_id": None, "litellm_budget_table": None}
