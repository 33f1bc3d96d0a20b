"""Who is in which team. The operations of users and of teams share this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.fields import redacted
from twisted_vllm.errors import NotFound
from twisted_vllm.storage.records import Member, TeamRecord
from twisted_vllm.storage.transaction import Transaction


def find_team(transaction: Transaction, team_id: str, param: str = "team_id") -> TeamRecord:
    """Return a team.

    Raises:
        NotFound: there is none with this id.
    """
    team = transaction.teams.get(team_id)
    if team is None:
        raise NotFound(f"No team has the id `{redacted(team_id)}`.", param=param)
    return team


def put_members(transaction: Transaction, audit: AuditContext, team: TeamRecord, members: Sequence[Member]) -> None:
    """Add members to a team, or change their roles."""
    before = roles_in(transaction, team)
    for member in members:
        transaction.members.put(member)
    audit.record(transaction, "team", team.team_id, before, roles_in(transaction, team))


def roles_in(transaction: Transaction, team: TeamRecord) -> dict[str, Any]:
    """Return the roles of a team's members by their ids, as the audit log has them."""
    found = transaction.members.of_teams([team.team_id])[team.team_id]
    return {"members": {member.user_id: member.role for member in found}}
