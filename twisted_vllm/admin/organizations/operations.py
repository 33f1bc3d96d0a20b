"""What the organization routes do: functions on one transaction. Each change is written to the audit log."""

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
from twisted_vllm.admin.fields import redacted
from twisted_vllm.admin.keys import operations as keys
from twisted_vllm.admin.limits import report_usage
from twisted_vllm.admin.memberships import find_organization, put_organization_members, roles_in_organization
from twisted_vllm.admin.model_limits import check_limits_over_keys
from twisted_vllm.admin.models import MAX_SHOWN, Json
from twisted_vllm.admin.organizations.models import (
    AddOrganizationMembersRequest,
    NewOrganizationRequest,
    OrganizationMemberRequest,
    PatchOrganizationRequest,
    UpdateOrganizationMemberRequest,
)
from twisted_vllm.admin.scope import IScope
from twisted_vllm.admin.teams import operations as teams
from twisted_vllm.admin.users import operations as users
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import Conflict, InvalidRequest, NotFound
from twisted_vllm.ratelimit.allowance import ORGANIZATION
from twisted_vllm.storage.records import OrganizationMember, OrganizationRecord, UserRecord
from twisted_vllm.storage.transaction import Transaction

#: the role of a member who administers the organization
ORG_ADMIN = "org_admin"


def add(
    transaction: Transaction, audit: AuditContext, body: NewOrganizationRequest, organization_id: str
) -> OrganizationRecord:
    """Create an organization.

    Raises:
        Conflict: it exists.
        NotFound: its budget does not exist.
    """
    if transaction.organizations.get(organization_id) is not None:
        raise Conflict(
            "Another organization has this id already. Send another `organization_id`.", param="organization_id"
        )
    organization = OrganizationRecord(organization_id=organization_id, **body.values(), **audit.created)
    check_budget(transaction, organization.budget_id)
    transaction.organizations.insert(organization)
    audit.record(transaction, ORGANIZATION, organization_id, None, organization)
    return organization


def update(
    transaction: Transaction,
    audit: AuditContext,
    organization_id: str,
    body: PatchOrganizationRequest,
    given: Container[str],
) -> OrganizationRecord:
    """Change an organization.

    Args:
        transaction: the transaction.
        audit: who asks.
        organization_id: the organization.
        body: the request.
        given: the names of the fields that it has.

    Raises:
        NotFound: there is no such organization, or no such budget.
        InvalidRequest: a limit would never count.
        RouteNotAllowed: it has keys that may administer, and the actor may not change those.
    """
    organization = find_organization(transaction, organization_id)
    changed = attrs.evolve(organization, **body.values(given, organization), **audit.updated)
    check_budget(transaction, changed.budget_id)
    keys_of_all = _keys_of(transaction, [organization.organization_id])
    audit.scope.check_keys(transaction, *keys_of_all)
    check_limits_over_keys(effective_limits(transaction, changed), keys_of_all)
    transaction.organizations.replace(organization.organization_id, changed)
    audit.record(transaction, ORGANIZATION, organization.organization_id, organization, changed)
    return changed


def delete(transaction: Transaction, audit: AuditContext, organization_ids: Sequence[str]) -> list[Json]:
    """Delete organizations with their teams, keys and memberships, all or none, and return reports of what they were.

    Raises:
        NotFound: one of them does not exist.
        RouteNotAllowed: the actor may not delete one of their keys.
    """
    found = [find_organization(transaction, each, "organization_ids") for each in dict.fromkeys(organization_ids)]
    ids = [organization.organization_id for organization in found]
    reports = report_organizations(transaction, found, audit.now)
    audit.scope.check_keys(transaction, *_keys_of(transaction, ids))
    teams.delete(transaction, audit, [team.team_id for team in transaction.teams.among("organization_id", ids)])
    keys.delete_records(transaction, audit, transaction.keys.among("organization_id", ids))
    transaction.organization_members.remove_all(organization_ids=ids)
    transaction.organizations.delete(ids)
    transaction.spend.forget(ORGANIZATION, ids)
    for organization in found:
        audit.record(transaction, ORGANIZATION, organization.organization_id, organization, None)
    return reports


def _keys_of(transaction: Transaction, organization_ids: Sequence[str]) -> list[KeyRecord]:
    """Return the keys of organizations: their own, and those of their teams."""
    of_teams = [team.team_id for team in transaction.teams.among("organization_id", organization_ids)]
    found = [
        *transaction.keys.among("organization_id", organization_ids),
        *transaction.keys.among("team_id", of_teams),
    ]
    return list({key.token: key for key in found}.values())


def add_members(
    transaction: Transaction, audit: AuditContext, body: AddOrganizationMembersRequest
) -> tuple[list[UserRecord], list[OrganizationMember]]:
    """Add users to an organization, and return them with their memberships. A user who is unknown is created.

    Those who are members already stay what they are.

    Raises:
        NotFound: there is no such organization.
        InvalidRequest: all are members already.
    """
    organization = find_organization(transaction, body.organization_id)
    identity = organization.organization_id
    members = {each.user_id: each for each in transaction.organization_members.of_organizations([identity])[identity]}
    found: dict[str, UserRecord] = {}
    added: dict[str, OrganizationMember] = {}
    for each in body.members:
        user = users.find_or_add(transaction, audit, each.user_id, each.user_email)
        found[user.user_id] = user
        if user.user_id not in members:
            added.setdefault(user.user_id, OrganizationMember(identity, user.user_id, each.role))
    if not added:
        raise InvalidRequest(
            "All of them are in the organization already. Change a role with /organization/member_update.",
            param="member",
        )
    put_organization_members(transaction, audit, organization, list(added.values()))
    return list(found.values()), [added.get(user_id) or members[user_id] for user_id in found]


def update_member(
    transaction: Transaction, audit: AuditContext, body: UpdateOrganizationMemberRequest
) -> OrganizationMember:
    """Change the role of a member, and return the membership.

    Raises:
        NotFound: there is no such organization or user, or the user is not in it.
    """
    organization, member = _find_member(transaction, body)
    if body.role is not None and body.role != member.role:
        member = attrs.evolve(member, role=body.role)
        put_organization_members(transaction, audit, organization, [member])
    return member


def remove_member(transaction: Transaction, audit: AuditContext, body: OrganizationMemberRequest) -> OrganizationMember:
    """Remove a user from an organization, and return what the membership was. The user's keys stay.

    Raises:
        NotFound: as `update_member`.
    """
    organization, member = _find_member(transaction, body)
    before = roles_in_organization(transaction, organization)
    transaction.organization_members.remove(member.organization_id, member.user_id)
    after = roles_in_organization(transaction, organization)
    audit.record(transaction, ORGANIZATION, member.organization_id, before, after)
    return member


def _find_member(
    transaction: Transaction, body: OrganizationMemberRequest
) -> tuple[OrganizationRecord, OrganizationMember]:
    organization = find_organization(transaction, body.organization_id)
    user = users.find(transaction, body.user_id, body.user_email)
    member = transaction.organization_members.get(organization.organization_id, user.user_id)
    if member is None:
        raise NotFound(f"`{redacted(user.user_id)}` is not a member of this organization.", param="user_id")
    return organization, member


def visible_organizations(
    transaction: Transaction,
    scope: IScope,
    organizations: Sequence[OrganizationRecord],
    now: datetime,
    most: int = MAX_SHOWN,
) -> list[Json]:
    """Return those organizations that a caller may see.

    Their own administrators see everybody in them, and others their own membership and their own teams.
    """
    own, teams = scope.own_organizations(transaction), scope.own_teams(transaction)
    if own is None or teams is None:
        return report_organizations(transaction, organizations, now, most)
    visible = [each for each in organizations if each.organization_id in own]
    reports = report_organizations(transaction, visible, now, most)
    for report in reports:
        membership = own[report["organization_id"]]
        if membership is None or membership.role != ORG_ADMIN:
            report["members"] = [] if membership is None else report_memberships(transaction, [membership])
            report["members_count"] = len(report["members"])
            report["teams"] = [each for each in report["teams"] if each["team_id"] in teams]
    return reports


def report_organizations(
    transaction: Transaction, organizations: Sequence[OrganizationRecord], now: datetime, most: int = MAX_SHOWN
) -> list[Json]:
    """Return organizations as `OrganizationReport` describes them.

    Args:
        transaction: the transaction.
        organizations: the organizations.
        now: the time.
        most: how many members of each to show at most.
    """
    ids = [each.organization_id for each in organizations]
    spend, budgets = transaction.spend.of(ORGANIZATION, ids), budgets_of(transaction, organizations)
    counts = transaction.organization_members.count_in(ids)
    members = transaction.organization_members.first_in(counts, most)
    memberships: dict[str, list[Json]] = {each: [] for each in ids}
    for membership in report_memberships(transaction, [member for each in members.values() for member in each]):
        memberships[membership["organization_id"]].append(membership)
    of_organization: dict[str | None, list[Json]] = {each: [] for each in ids}
    for team in transaction.teams.among("organization_id", ids):
        of_organization[team.organization_id].append(
            {"team_id": team.team_id, "team_alias": team.team_alias, "models": team.models}
        )
    return [
        {
            **report_usage(each.allowance, spend[each.organization_id], now, effective(each, budgets)),
            **report_budget(each, budgets, always=True),
            "organization_id": each.organization_id,
            "organization_alias": each.organization_alias,
            "models": each.models,
            "metadata": each.metadata,
            "members": memberships[each.organization_id],
            "members_count": counts[each.organization_id],
            "teams": of_organization[each.organization_id],
            "created_at": each.created_at,
            "created_by": each.created_by,
            "updated_at": each.updated_at,
            "updated_by": each.updated_by,
        }
        for each in organizations
    ]


def report_memberships(transaction: Transaction, members: Sequence[OrganizationMember]) -> list[Json]:
    """Return memberships as `OrganizationMembership` describes them."""
    emails = transaction.users.values_of("user_email", (member.user_id for member in members))
    return [
        {
            "organization_id": member.organization_id,
            "user_id": member.user_id,
            "user_email": emails.get(member.user_id),
            "user_role": member.role,
            "budget_id": None,
            "litellm_budget_table": None,
        }
        for member in members
    ]
