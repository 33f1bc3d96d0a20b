"""The tables, as one transaction reads and changes them."""

from __future__ import annotations

from datetime import datetime
from functools import partial

from sqlalchemy import Connection, delete, insert
from sqlalchemy.sql.elements import ColumnElement

from twisted_vllm.auth.grants import Changes
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.ratelimit.allowance import END_USER, KEY, MEMBER, ORGANIZATION, TEAM, USER, member_id
from twisted_vllm.storage import tables
from twisted_vllm.storage.audit_months import make_month, month_of
from twisted_vllm.storage.counts import Counts
from twisted_vllm.storage.grants import read_changed, spend_name
from twisted_vllm.storage.paging import Page, PageQuery
from twisted_vllm.storage.records import (
    AuditRecord,
    BudgetRecord,
    DrainedServerRecord,
    EndUserRecord,
    FormerKeyRecord,
    Member,
    ModelRecord,
    OrganizationMember,
    OrganizationRecord,
    TeamRecord,
    UserRecord,
)
from twisted_vllm.storage.repository import (
    KeyRepository,
    MemberRepository,
    OrganizationMemberRepository,
    Repository,
    SpendRepository,
)
from twisted_vllm.storage.revisions import last_revision

#: changes to store for other processes; a process that missed more reads everything again
KEPT_CHANGES = 10_000


class Transaction:
    """The tables, for work in one transaction on the database's thread.

    Attributes:
        audited: how many entries of the audit log it wrote.
        keys: the keys.
        former: the values of keys before they were regenerated.
        users: the users.
        teams: the teams.
        members: which users are members of which teams.
        organizations: the organizations.
        organization_members: which users are members of which organizations.
        budgets: limits that several may name.
        end_users: the end users that an administrator created.
        models: the entries of the model list that were added at run time.
        drained_servers: the servers that get no new requests.
        spend: what everybody with limits spent.
    """

    def __init__(self, connection: Connection, stamp: int | None = None, counts: Counts | None = None) -> None:
        """Make the tables of a transaction.

        Args:
            connection: the transaction's connection.
            stamp: the random number that its changes get; None for a transaction that only reads.
            counts: how many records lists have, for a transaction that only reads; None to count them each time.
        """
        self._connection = connection
        self._stamp = stamp
        self.audited = 0
        self._months: set[datetime] = set()
        self._counts = counts
        # a dictionary as an ordered set
        self._changed: dict[tuple[str, str], None] = {}
        self.keys = KeyRepository(connection, tables.keys, KeyRecord, partial(self._mark, KEY), counts)
        self.former = Repository(
            connection, tables.former_keys, FormerKeyRecord, partial(self._mark, tables.FORMER_KEY)
        )
        self.users = Repository(connection, tables.users, UserRecord, partial(self._mark, USER), counts)
        self.teams = Repository(connection, tables.teams, TeamRecord, partial(self._mark, TEAM), counts)
        self.members = MemberRepository(
            connection, tables.members, Member, lambda team_id, user_id: self._mark(MEMBER, member_id(team_id, user_id))
        )
        self.organizations = Repository(
            connection, tables.organizations, OrganizationRecord, partial(self._mark, ORGANIZATION), counts
        )
        # nothing in memory depends on them
        self.organization_members = OrganizationMemberRepository(
            connection, tables.organization_members, OrganizationMember, lambda _organization_id, _user_id: None
        )
        self.budgets = Repository(connection, tables.budgets, BudgetRecord, partial(self._mark, tables.BUDGET), counts)
        self.end_users = Repository(connection, tables.end_users, EndUserRecord, partial(self._mark, END_USER), counts)
        self.models = Repository(connection, tables.models, ModelRecord, partial(self._mark, tables.MODEL))
        self.drained_servers = Repository(
            connection, tables.drained_servers, DrainedServerRecord, partial(self._mark, tables.DRAINED)
        )
        self.spend = SpendRepository(
            connection, lambda kind, identity: self._mark(tables.SPEND, spend_name(kind, identity))
        )

    @property
    def connection(self) -> Connection:
        """The connection, for work that only reads."""
        return self._connection

    def _mark(self, kind: str, name: str) -> None:
        self._changed[kind, name] = None

    def replace_key(self, old: KeyRecord, new: KeyRecord) -> None:
        """Replace a key.

        Raises:
            KeyExists, AliasExists: as `KeyRepository.insert`.
        """
        self.keys.replace(old.token, new)
        if new.token != old.token:
            # The key's earlier values now lead to another token.
            for former in self.former.find(key_id=new.key_id):
                self._mark(tables.FORMER_KEY, former.token)

    def delete_keys(self, records: list[KeyRecord]) -> None:
        """Delete keys with their earlier values and their spend."""
        former = self.former.among("key_id", (record.key_id for record in records))
        self.former.delete([each.token for each in former])
        self.keys.delete([record.token for record in records])
        self.spend.forget(KEY, [record.key_id for record in records])

    def write_audit(self, record: AuditRecord) -> None:
        """Add an entry to the audit log."""
        self.audited += 1
        month = month_of(record.at)
        if month not in self._months:
            # The month is made before it begins, unless nothing of this ran then.
            make_month(self._connection, month)
            self._months.add(month)
        values = {column.name: getattr(record, column.name) for column in tables.audit.columns if column.name != "id"}
        self._connection.execute(insert(tables.audit).values(values))

    def page_of_audit(self, query: PageQuery, since: datetime | None, until: datetime | None) -> Page[AuditRecord]:
        """Return a page of the audit log from `since` on and before `until`."""
        at = tables.audit.c.at
        conditions: list[ColumnElement[bool]] = []
        if since is not None:
            conditions.append(at >= since)
        if until is not None:
            conditions.append(at < until)
        entries: Repository[AuditRecord] = Repository(self._connection, tables.audit, AuditRecord, lambda _: None)
        total = None
        if self._counts is not None:
            total = self._counts.of_log(
                self._connection, [*conditions, *query.conditions(tables.audit, self._connection.dialect.name)]
            )
        return entries.page(query, *conditions, total=total)

    def finish(self) -> Changes:
        """Store the changes for other processes, and return them for this process's key index."""
        if self._changed:
            revision = last_revision(self._connection).number
            rows = [
                {"revision": revision + number, "kind": kind, "name": name, "stamp": self._stamp}
                for number, (kind, name) in enumerate(self._changed, 1)
            ]
            self._connection.execute(insert(tables.changes), rows)
            old = revision + len(rows) - KEPT_CHANGES
            if old > 0:
                self._connection.execute(delete(tables.changes).where(tables.changes.c.revision <= old))
        return read_changed(self._connection, self._changed)
