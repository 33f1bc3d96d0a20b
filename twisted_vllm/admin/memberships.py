"""Who is in which team. The operations of users and of teams share this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.fields import redacted
from twisted_vllm.admin.limits import report_limits
from twisted_vllm.admin.scope import no_organization
from twisted_vllm.errors import NotFound
from twisted_vllm.ratelimit.allowance import members_budget_id
from twisted_vllm.storage.records import Member, OrganizationMember, OrganizationRecord, TeamRecord
from twisted_vllm.storage.transaction import Transaction


def find_team(transaction: Transaction, team_id: str, param: str = "team_id") -> TeamRecord:
    """Return a team.

    Raises:
        NotFound: there is none with this id.
    """
    team = transaction.teams.get(team_id)
    if team is None:
        raise NotFound(f"No team has the id `{redacted(team_id)}`. GET /team/list shows all.", param=param)
    return team


def find_organization(
    transaction: Transaction, organization_id: str, param: str = "organization_id"
) -> OrganizationRecord:
    """Return an organization.

    Raises:
        NotFound: there is none with this id.
    """
    organization = transaction.organizations.get(organization_id)
    if organization is None:
        raise no_organization(organization_id, param)
    return organization


def put_members(transaction: Transaction, audit: AuditContext, team: TeamRecord, members: Sequence[Member]) -> None:
    """Add members to a team, or change them. They name the team's budget for members, if it has one."""
    before = roles_in(transaction, team)
    shared = members_budget_id(team.team_id)
    if transaction.budgets.get(shared) is not None:
        members = [each if each.budget_id else attrs.evolve(each, budget_id=shared) for each in members]
    for member in members:
        transaction.members.put(member)
    audit.record(transaction, "team", team.team_id, before, roles_in(transaction, team))


def roles_in(transaction: Transaction, team: TeamRecord) -> dict[str, Any]:
    """Return the roles of a team's members by their ids, as the audit log has them."""
    found = transaction.members.of_teams([team.team_id])[team.team_id]
    limits = {
        member.user_id: {
            name: value for name, value in report_limits(member.allowance).items() if value not in (None, {})
        }
        for member in found
        if not member.allowance.is_unlimited
    }
    roles = {"members": {member.user_id: member.role for member in found}}
    return {**roles, "member_limits": limits} if limits else roles


def put_organization_members(
    transaction: Transaction,
    audit: AuditContext,
    organization: OrganizationRecord,
    members: Sequence[OrganizationMember],
) -> None:
    """Add members to an organization, or change their roles."""
    before = roles_in_organization(transaction, organization)
    for member in members:
        transaction.organization_members.put(member)
    after = roles_in_organization(transaction, organization)
    audit.record(transaction, "organization", organization.organization_id, before, after)


def roles_in_organization(transaction: Transaction, organization: OrganizationRecord) -> dict[str, Any]:
    """Return the roles of an organization's members by their ids, as the audit log has them."""
    identity = organization.organization_id
    found = transaction.organization_members.of_organizations([identity])[identity]
    return {"members": {member.user_id: member.role for member in found}}
