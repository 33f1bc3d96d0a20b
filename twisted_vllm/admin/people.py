"""What becomes of users and teams: plain steps on one transaction, each with its note in the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from twisted_vllm.admin import key_operations
from twisted_vllm.admin.acts import AuditContext
from twisted_vllm.admin.litellm import shown
from twisted_vllm.admin.people_schemas import (
    NewMember,
    NewTeamRequest,
    NewUserRequest,
    RemoveMemberRequest,
    UpdateMemberRequest,
    UpdateTeamRequest,
    UpdateUserRequest,
)
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import Conflict, InvalidRequest, NotFound
from twisted_vllm.storage.records import Member, TeamRecord, UserRecord
from twisted_vllm.storage.transaction import Transaction


def find_user(transaction: Transaction, user_id: str | None, email: str | None = None) -> UserRecord:
    """Return a user by its id, else by its address.

    Raises:
        NotFound: there is none.
    """
    if user_id is not None:
        user = transaction.users.get(user_id)
        if user is None:
            raise NotFound(f"No user has the id `{shown(user_id)}`.", param="user_id")
        return user
    found = transaction.users.find(user_email=(email or "").lower())
    if not found:
        raise NotFound("No user has this address.", param="user_email")
    return found[0]


def find_team(transaction: Transaction, team_id: str, param: str = "team_id") -> TeamRecord:
    """Return a team.

    Raises:
        NotFound: there is none.
    """
    team = transaction.teams.get(team_id)
    if team is None:
        raise NotFound(f"No team has the id `{shown(team_id)}`.", param=param)
    return team


def add_user(
    transaction: Transaction, act: AuditContext, asked: NewUserRequest, user_id: str, key: KeyRecord | None
) -> UserRecord:
    """Make a user, put it into its teams, and keep its first key.

    Raises:
        Conflict: there is such a user, or such a key.
        NotFound: there is no such team.
        RouteNotAllowed: the actor may not give that id, as keys that administer have it.
    """
    if transaction.users.get(user_id) is not None:
        raise Conflict("Another user has this id already. Send another `user_id`.", param="user_id")
    user = UserRecord(
        user_id=user_id,
        **asked.values(asked.__struct_fields__),
        created_at=act.now,
        created_by=act.actor,
        updated_at=act.now,
        updated_by=act.actor,
    )
    _check_email_free(transaction, user)
    act.check_may_change(*transaction.keys.find(user_id=user_id))
    teams = [find_team(transaction, team_id, "teams") for team_id in dict.fromkeys(asked.teams or ())]
    if key is not None:
        key_operations.insert(transaction, act, key)
    transaction.users.insert(user)
    act.note(transaction, "user", user_id, None, user)
    for team in teams:
        _put_members(transaction, act, team, [Member(team.team_id, user_id)])
    return user


def update_user(
    transaction: Transaction, act: AuditContext, asked: UpdateUserRequest, given: Mapping[str, Any]
) -> UserRecord:
    """Change a user.

    Raises:
        NotFound: there is none.
        Conflict: another has the address.
        RouteNotAllowed: the actor may not change the user of keys that administer.
    """
    user = find_user(transaction, asked.user_id, asked.user_email)
    changed = attrs.evolve(user, **asked.values(given, user.allowance), updated_at=act.now, updated_by=act.actor)
    _check_email_free(transaction, changed)
    act.check_may_change(*transaction.keys.find(user_id=user.user_id))
    transaction.users.replace(user.user_id, changed)
    act.note(transaction, "user", user.user_id, user, changed)
    return changed


def _check_email_free(transaction: Transaction, user: UserRecord) -> None:
    if user.user_email is None:
        return
    if any(each.user_id != user.user_id for each in transaction.users.find(user_email=user.user_email)):
        raise Conflict("Another user has this address already. Send another `user_email`.", param="user_email")


def delete_users(transaction: Transaction, act: AuditContext, user_ids: Sequence[str]) -> int:
    """Delete users with their keys and memberships, all or none; return how many.

    Raises:
        NotFound: one of them is not known.
        RouteNotAllowed: the actor may not delete one of their keys.
    """
    users = [find_user(transaction, user_id) for user_id in dict.fromkeys(user_ids)]
    found = [user.user_id for user in users]
    key_operations.delete_records(transaction, act, transaction.keys.among("user_id", found))
    transaction.members.remove_all(user_ids=found)
    transaction.users.delete(found)
    transaction.spend.forget("user", found)
    for user in users:
        act.note(transaction, "user", user.user_id, user, None)
    return len(users)


def add_team(transaction: Transaction, act: AuditContext, asked: NewTeamRequest, team_id: str) -> TeamRecord:
    """Make a team with its first members.

    Raises:
        Conflict: there is such a team.
        RouteNotAllowed: the actor may not give that id, as keys that administer have it.
    """
    if transaction.teams.get(team_id) is not None:
        raise Conflict("Another team has this id already. Send another `team_id`.", param="team_id")
    act.check_may_change(*transaction.keys.find(team_id=team_id))
    team = TeamRecord(
        team_id=team_id,
        **asked.values(asked.__struct_fields__),
        created_at=act.now,
        created_by=act.actor,
        updated_at=act.now,
        updated_by=act.actor,
    )
    transaction.teams.insert(team)
    act.note(transaction, "team", team_id, None, team)
    if asked.members_with_roles:
        add_members(transaction, act, team, asked.members_with_roles)
    return team


def update_team(
    transaction: Transaction, act: AuditContext, asked: UpdateTeamRequest, given: Mapping[str, Any]
) -> TeamRecord:
    """Change a team.

    Raises:
        NotFound: there is none.
        RouteNotAllowed: the actor may not change the team of keys that administer.
    """
    team = find_team(transaction, asked.team_id)
    return _change_team(transaction, act, team, asked.values(given, team.allowance))


def block_team(transaction: Transaction, act: AuditContext, team_id: str, blocked: bool) -> TeamRecord:
    """Block a team or unblock it.

    Raises:
        NotFound, RouteNotAllowed: as `update_team` does.
    """
    return _change_team(transaction, act, find_team(transaction, team_id), {"blocked": blocked})


def _change_team(
    transaction: Transaction, act: AuditContext, team: TeamRecord, values: Mapping[str, Any]
) -> TeamRecord:
    act.check_may_change(*transaction.keys.find(team_id=team.team_id))
    changed = attrs.evolve(team, **values, updated_at=act.now, updated_by=act.actor)
    transaction.teams.replace(team.team_id, changed)
    act.note(transaction, "team", team.team_id, team, changed)
    return changed


def delete_teams(transaction: Transaction, act: AuditContext, team_ids: Sequence[str]) -> list[str]:
    """Delete teams with their keys and memberships, all or none; return their ids.

    Raises:
        NotFound: one of them is not known.
        RouteNotAllowed: the actor may not delete one of their keys.
    """
    teams = [find_team(transaction, team_id, "team_ids") for team_id in dict.fromkeys(team_ids)]
    found = [team.team_id for team in teams]
    key_operations.delete_records(transaction, act, transaction.keys.among("team_id", found))
    transaction.members.remove_all(team_ids=found)
    transaction.teams.delete(found)
    transaction.spend.forget("team", found)
    for team in teams:
        act.note(transaction, "team", team.team_id, team, None)
    return found


def add_members(
    transaction: Transaction, act: AuditContext, team: TeamRecord, asked: Sequence[NewMember]
) -> list[UserRecord]:
    """Make users members of a team; one that is not known by its id is made. Return them.

    Raises:
        InvalidRequest: a member is named neither by an id nor by an address.
        NotFound: an address is nobody's.
    """
    users = [_user_for(transaction, act, each) for each in asked]
    members = [Member(team.team_id, user.user_id, each.role) for user, each in zip(users, asked, strict=True)]
    _put_members(transaction, act, team, members)
    return users


def _user_for(transaction: Transaction, act: AuditContext, asked: NewMember) -> UserRecord:
    if asked.user_id is None and asked.user_email is None:
        raise InvalidRequest("Name the member: `user_id`, or `user_email`.", param="member")
    if asked.user_id is None or transaction.users.get(asked.user_id) is not None:
        return find_user(transaction, asked.user_id, asked.user_email)
    return add_user(
        transaction, act, NewUserRequest(user_id=asked.user_id, user_email=asked.user_email), asked.user_id, None
    )


def _put_members(transaction: Transaction, act: AuditContext, team: TeamRecord, members: Sequence[Member]) -> None:
    before = _roles(transaction, team)
    for member in members:
        transaction.members.put(member)
    act.note(transaction, "team", team.team_id, before, _roles(transaction, team))


def update_member(
    transaction: Transaction, act: AuditContext, asked: UpdateMemberRequest
) -> tuple[TeamRecord, UserRecord, Member]:
    """Give a member of a team another role; return the team, the user and its membership.

    Raises:
        NotFound: there is no such team or user, or the user is not in the team.
    """
    team = find_team(transaction, asked.team_id)
    user = find_user(transaction, asked.user_id, asked.user_email)
    members = transaction.members.of_teams([team.team_id])[team.team_id]
    for member in members:
        if member.user_id == user.user_id:
            if asked.role is not None and asked.role != member.role:
                member = Member(team.team_id, user.user_id, asked.role)
                _put_members(transaction, act, team, [member])
            return team, user, member
    raise _no_member(user.user_id)


def _no_member(user_id: str) -> NotFound:
    return NotFound(f"`{shown(user_id)}` is not a member of this team.", param="user_id")


def remove_member(transaction: Transaction, act: AuditContext, asked: RemoveMemberRequest) -> TeamRecord:
    """Take a user out of a team, and delete the keys that it has there.

    Raises:
        NotFound: there is no such team, or the user is not in it.
        RouteNotAllowed: the actor may not delete one of the keys.
    """
    team = find_team(transaction, asked.team_id)
    user_id = asked.user_id
    if user_id is None:
        user_id = find_user(transaction, None, asked.user_email).user_id
    before = _roles(transaction, team)
    if not transaction.members.remove(team.team_id, user_id):
        raise _no_member(user_id)
    keys = transaction.keys.find(user_id=user_id, team_id=team.team_id)
    key_operations.delete_records(transaction, act, keys)
    act.note(transaction, "team", team.team_id, before, _roles(transaction, team))
    return team


def _roles(transaction: Transaction, team: TeamRecord) -> dict[str, Any]:
    found = transaction.members.of_teams([team.team_id])[team.team_id]
    return {"members": {member.user_id: member.role for member in found}}
