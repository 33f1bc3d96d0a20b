"""Who is a member of which team, as one transaction sees it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select

from twisted_vllm.storage.records import Member
from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.tables import members


class Memberships:
    """The table of members."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def of_teams(self, team_ids: list[str]) -> dict[str, list[Member]]:
        """Return the members of each team, in the order of their ids."""
        found: dict[str, list[Member]] = {team_id: [] for team_id in team_ids}
        for some in in_chunks(team_ids):
            asked = select(members).where(members.c.team_id.in_(some)).order_by(members.c.user_id)
            for row in self._connection.execute(asked):
                found[row.team_id].append(Member(**row._mapping))
        return found

    def of_users(self, user_ids: list[str]) -> dict[str, list[Member]]:
        """Return the memberships of each user, in the order of the teams' ids."""
        found: dict[str, list[Member]] = {user_id: [] for user_id in user_ids}
        for some in in_chunks(user_ids):
            asked = select(members).where(members.c.user_id.in_(some)).order_by(members.c.team_id)
            for row in self._connection.execute(asked):
                found[row.user_id].append(Member(**row._mapping))
        return found

    def put(self, member: Member) -> None:
        """Make a user a member, or give a member another role."""
        self.remove(member.team_id, member.user_id)
        self._connection.execute(
            insert(members).values(team_id=member.team_id, user_id=member.user_id, role=member.role)
        )

    def remove(self, team_id: str, user_id: str) -> bool:
        """Take a user out of a team; tell whether it was in it."""
        gone = delete(members).where(members.c.team_id == team_id, members.c.user_id == user_id)
        return self._connection.execute(gone).rowcount > 0

    def remove_all(self, *, team_ids: Sequence[str] = (), user_ids: Sequence[str] = ()) -> None:
        """Take everybody out of these teams, and these users out of every team."""
        for some in in_chunks(team_ids):
            self._connection.execute(delete(members).where(members.c.team_id.in_(some)))
        for some in in_chunks(user_ids):
            self._connection.execute(delete(members).where(members.c.user_id.in_(some)))
