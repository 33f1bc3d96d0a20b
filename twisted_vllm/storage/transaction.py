"""What one transaction sees and changes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, and_, delete, false, func, insert, or_, select
from sqlalchemy.sql.elements import ColumnElement

from twisted_vllm.auth.grants import Changes
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.storage import tables
from twisted_vllm.storage.grants import (
    END_USER,
    FORMER,
    KEY,
    SPEND,
    TEAM,
    USER,
    last_revision,
    read_changed,
    spend_name,
)
from twisted_vllm.storage.interfaces import AliasExists, KeyExists
from twisted_vllm.storage.memberships import Memberships
from twisted_vllm.storage.records import AuditRecord, EndUserRecord, FormerKeyRecord, TeamRecord, UserRecord
from twisted_vllm.storage.repository import Page, PageQuery, Repository
from twisted_vllm.storage.spend import Spending

#: how many changes are kept for other processes to read; one that missed more reads everything again
KEPT_CHANGES = 10_000


class KeyRepository(Repository[KeyRecord]):
    """The keys, each with an alias that no other has."""

    def by_alias(self, alias: str) -> KeyRecord | None:
        """Return the key that has this alias."""
        found = self.find(key_alias=alias)
        return found[0] if found else None

    def insert(self, record: KeyRecord) -> None:
        """Keep a new key.

        Raises:
            KeyExists: its token is there already, or was a key's that was regenerated.
            AliasExists: its alias belongs to another key.
        """
        self._refuse_taken(record, None)
        super().insert(record)

    def replace(self, identity: str, record: KeyRecord) -> None:
        """Keep a key in the place of another.

        Raises:
            KeyExists, AliasExists: as `insert` does.
        """
        self._refuse_taken(record, identity)
        super().replace(identity, record)

    def _refuse_taken(self, record: KeyRecord, identity: str | None) -> None:
        if record.token != identity:
            for table in (tables.keys, tables.former_keys):
                taken = select(table.c.token).where(table.c.token == record.token)
                if self._connection.execute(taken).first() is not None:
                    raise KeyExists
        if record.key_alias is not None:
            owner = self.by_alias(record.key_alias)
            if owner is not None and owner.token != identity:
                raise AliasExists

    def count_by(self, column: str, values: Sequence[str]) -> dict[str, int]:
        """Return how many keys have each of these values."""
        asked = tables.keys.c[column]
        counted = select(asked, func.count()).where(asked.in_(values)).group_by(asked)
        return {row[0]: row[1] for row in self._connection.execute(counted)}

    def _sorting(self, name: str) -> ColumnElement[Any] | None:
        if name != "spend":
            return super()._sorting(name)
        # what the last period with any spending has, also where that is over
        spent = select(tables.spend.c.spend).where(
            tables.spend.c.kind == KEY, tables.spend.c.id == tables.keys.c.key_id
        )
        return func.coalesce(spent.scalar_subquery(), 0)

    def page_of_status(self, query: PageQuery, status: str | None, now: datetime) -> Page[KeyRecord]:
        """Return a page of the keys in one state: ``active``, ``expired``, ``revoked``; or of all."""
        return self.page(query, *(() if status is None else (_has_status(status, now),)))

    def page_of_aliases(self, query: PageQuery) -> Page[KeyRecord]:
        """Return a page of the keys that have an alias."""
        return self.page(query, tables.keys.c.key_alias.is_not(None))


def _has_status(status: str, now: datetime) -> ColumnElement[bool]:
    blocked, expires = tables.keys.c.blocked, tables.keys.c.expires
    if status == "active":
        return and_(blocked.is_(False), or_(expires.is_(None), expires > now))
    if status == "expired":
        return and_(blocked.is_(False), expires <= now)
    return blocked.is_(True) if status == "revoked" else false()


class Transaction:
    """The tables, for work that is done in one transaction, in the database's thread.

    Attributes:
        keys: the keys.
        former: the values that keys had before they were regenerated.
        users: the users.
        teams: the teams.
        members: who is in which team.
        end_users: for whom keys are used.
        spend: what each spent.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._touched: dict[tuple[str, str], None] = {}
        self.keys = KeyRepository(connection, tables.keys, KeyRecord, partial(self._touch, KEY))
        self.former = Repository(connection, tables.former_keys, FormerKeyRecord, partial(self._touch, FORMER))
        self.users = Repository(connection, tables.users, UserRecord, partial(self._touch, USER))
        self.teams = Repository(connection, tables.teams, TeamRecord, partial(self._touch, TEAM))
        self.members = Memberships(connection)
        self.end_users = Repository(connection, tables.end_users, EndUserRecord, partial(self._touch, END_USER))
        self.spend = Spending(connection, lambda kind, identity: self._touch(SPEND, spend_name(kind, identity)))

    @property
    def connection(self) -> Connection:
        """The connection, for work that only reads."""
        return self._connection

    def _touch(self, kind: str, name: str) -> None:
        self._touched[kind, name] = None

    def replace_key(self, old: KeyRecord, new: KeyRecord) -> None:
        """Keep a key as it is now in the place of what it was.

        Raises:
            KeyExists, AliasExists: as `KeyRepository.insert` does.
        """
        self.keys.replace(old.token, new)
        if new.token != old.token:
            # the values from before lead to another token now
            for former in self.former.find(key_id=new.key_id):
                self._touch(FORMER, former.token)

    def delete_keys(self, records: list[KeyRecord]) -> None:
        """Forget keys, with the values that they had before."""
        former = self.former.among("key_id", (record.key_id for record in records))
        self.former.delete([each.token for each in former])
        self.keys.delete([record.token for record in records])
        self.spend.forget(KEY, [record.key_id for record in records])

    def write_audit(self, record: AuditRecord) -> None:
        """Note what was done."""
        values = {column.name: getattr(record, column.name) for column in tables.audit.columns if column.name != "id"}
        self._connection.execute(insert(tables.audit).values(values))

    def page_of_audit(self, query: PageQuery, since: datetime | None, until: datetime | None) -> Page[AuditRecord]:
        """Return a page of what was done from `since` on and before `until`."""
        at = tables.audit.c.at
        conditions: list[ColumnElement[bool]] = []
        if since is not None:
            conditions.append(at >= since)
        if until is not None:
            conditions.append(at < until)
        entries: Repository[AuditRecord] = Repository(self._connection, tables.audit, AuditRecord, lambda _: None)
        return entries.page(query, *conditions)

    def finish(self) -> Changes:
        """Note what was changed, for other processes, and return it for this one's index."""
        if self._touched:
            revision = last_revision(self._connection)
            rows = [
                {"revision": revision + number, "kind": kind, "name": name}
                for number, (kind, name) in enumerate(self._touched, 1)
            ]
            self._connection.execute(insert(tables.changes), rows)
            old = revision + len(rows) - KEPT_CHANGES
            if old > 0:
                self._connection.execute(delete(tables.changes).where(tables.changes.c.revision <= old))
        return read_changed(self._connection, self._touched)
