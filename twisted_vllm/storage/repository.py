"""The records in the tables, as one transaction sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

import attrs
from attrs import AttrsInstance
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Table,
    and_,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import sqlite

from twisted_vllm.auth.records import KeyRecord, Spend
from twisted_vllm.ratelimit.allowance import KEY, MEMBER, MODEL_BUDGET, SEPARATOR
from twisted_vllm.storage import tables
from twisted_vllm.storage.by_spend import keys_by_spend
from twisted_vllm.storage.counts import Counts, count_of
from twisted_vllm.storage.errors import AliasExists, KeyExists
from twisted_vllm.storage.paging import Page, PageQuery, Pager
from twisted_vllm.storage.records import Member, OrganizationMember

T = TypeVar("T")
RecordT = TypeVar("RecordT", bound=AttrsInstance)

#: values in one statement; SQLite's limit is 32,766
_MAX_VALUES = 1000
_MICROSECONDS = 10**6


def in_chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Return `values` in pieces that fit into one statement."""
    return (values[start : start + _MAX_VALUES] for start in range(0, len(values), _MAX_VALUES))


def count_by(connection: Connection, column: Column[Any], values: Sequence[str]) -> dict[str, int]:
    """Return how many rows have each of these values in a column; those that none has are left out."""
    counted = select(column, func.count()).where(column.in_(values)).group_by(column)
    return {row[0]: row[1] for row in connection.execute(counted)}


class Repository(Generic[RecordT]):
    """Records by their identity, the one column of the table's primary key.

    Args:
        connection: the transaction's.
        table: where the records are.
        record: their class, whose attributes are the table's columns.
        on_change: called with the identity of each record that changes.
        counts: how many records lists have; None to count them each time.
    """

    def __init__(
        self,
        connection: Connection,
        table: Table,
        record: type[RecordT],
        on_change: Callable[[str], None],
        counts: Counts | None = None,
    ) -> None:
        self._connection = connection
        self._counts = counts
        self._table = table
        self._record = record
        self._on_change = on_change
        [self._identity] = table.primary_key.columns
        self._tuples = [field.name for field in attrs.fields(record) if str(field.type).startswith("tuple")]

    def get(self, identity: str) -> RecordT | None:
        """Return the record with this identity."""
        found = self.find(**{self._identity.name: identity})
        return found[0] if found else None

    def count(self, **equals: Any) -> int:
        """Return how many records there are, or how many whose columns have these values."""
        wanted = [self._table.c[name] == value for name, value in equals.items()]
        return self._connection.execute(select(func.count()).select_from(self._table).where(*wanted)).scalar_one()

    def count_by(self, column: str, values: Sequence[str]) -> dict[str, int]:
        """Return how many records have each of these values."""
        return count_by(self._connection, self._table.c[column], values)

    def find(self, **equals: Any) -> list[RecordT]:
        """Return the records whose columns have these values, sorted by identity."""
        return self._read(*(self._table.c[name] == value for name, value in equals.items()))

    def among(self, column: str, values: Iterable[Any]) -> list[RecordT]:
        """Return the records whose column has one of these values."""
        found: list[RecordT] = []
        for chunk in in_chunks(list(dict.fromkeys(values))):
            found += self._read(self._table.c[column].in_(chunk))
        return found

    def values_of(self, column: str, identities: Iterable[str]) -> dict[str, Any]:
        """Return the values that one column has for some records, by their identities."""
        found: dict[str, Any] = {}
        for chunk in in_chunks(list(dict.fromkeys(identities))):
            values = select(self._identity, self._table.c[column]).where(self._identity.in_(chunk))
            found.update((row[0], row[1]) for row in self._connection.execute(values))
        return found

    def _read(self, *conditions: ColumnElement[bool]) -> list[RecordT]:
        statement = select(self._table).where(*conditions).order_by(self._identity)
        return [self._record_of(row) for row in self._connection.execute(statement)]

    def page(self, query: PageQuery, *conditions: ColumnElement[bool], total: int | None = None) -> Page[RecordT]:
        """Return the requested page; a page after the last is empty.

        Args:
            query: which page.
            conditions: what the records must meet besides.
            total: how many records there are in all, where that is known.

        Raises:
            InvalidRequest: the cursor cannot be used.
        """
        pager = Pager(self._connection, self._table, self._identity, self._counts)
        rows, count, following = pager.read(query, conditions, self._sort_column(query.sort_by), total)
        return self._page_of([self._record_of(row) for row in rows], query, count, following)

    @staticmethod
    def _page_of(records: list[RecordT], query: PageQuery, count: int, following: str | None) -> Page[RecordT]:
        return Page(records, count, query.page, -(-count // query.size), following)

    def _sort_column(self, name: str) -> ColumnElement[Any] | None:
        return self._table.c.get(name)

    def are(self, identities: Sequence[str]) -> ColumnElement[bool]:
        """Return the condition that a record is one of these."""
        return self._identity.in_(identities)

    def insert(self, record: RecordT) -> None:
        """Add a record."""
        values = self._values(record)
        self._connection.execute(insert(self._table).values(values))
        self._on_change(str(values[self._identity.name]))

    def insert_all(self, records: Sequence[RecordT]) -> None:
        """Add many records, of which the caller knows that they are unique."""
        for chunk in in_chunks(records):
            rows = [self._values(record) for record in chunk]
            self._connection.execute(insert(self._table), rows)
            for row in rows:
                self._on_change(str(row[self._identity.name]))

    def replace(self, identity: str, record: RecordT) -> None:
        """Replace a record by one that may have another identity."""
        values = self._values(record)
        self._connection.execute(update(self._table).where(self._identity == identity).values(values))
        self._on_change(identity)
        self._on_change(str(values[self._identity.name]))

    def delete(self, identities: Sequence[str]) -> None:
        """Delete records. Those that do not exist are ignored."""
        for chunk in in_chunks(identities):
            self._connection.execute(delete(self._table).where(self._identity.in_(chunk)))
        for identity in identities:
            self._on_change(identity)

    def _values(self, record: RecordT) -> dict[str, Any]:
        values = {column.name: getattr(record, column.name) for column in self._table.columns}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def _record_of(self, row: Row[Any]) -> RecordT:
        values = dict(row._mapping)
        for name in self._tuples:
            values[name] = tuple(values[name])
        return self._record(**values)


class KeyRepository(Repository[KeyRecord]):
    """The keys. No two have the same alias."""

    def by_alias(self, alias: str) -> KeyRecord | None:
        """Return the key with this alias."""
        found = self.find(key_alias=alias)
        return found[0] if found else None

    def insert(self, record: KeyRecord) -> None:
        """Add a key.

        Raises:
            KeyExists: a key has or had this token.
            AliasExists: another key has its alias.
        """
        self._check_unique(record, None)
        super().insert(record)

    def replace(self, identity: str, record: KeyRecord) -> None:
        """Replace a key.

        Raises:
            KeyExists, AliasExists: as `insert`.
        """
        self._check_unique(record, identity)
        super().replace(identity, record)

    def _check_unique(self, record: KeyRecord, identity: str | None) -> None:
        if record.token != identity:
            for table in (tables.keys, tables.former_keys):
                taken = select(table.c.token).where(table.c.token == record.token)
                if self._connection.execute(taken).first() is not None:
                    raise KeyExists
        if record.key_alias is not None:
            owner = self.by_alias(record.key_alias)
            if owner is not None and owner.token != identity:
                raise AliasExists

    def _sort_column(self, name: str) -> ColumnElement[Any] | None:
        if name != "spend":
            return super()._sort_column(name)
        # the spend of the last period in which the key spent anything, even if that is over
        spent = select(tables.spend.c.spend).where(
            tables.spend.c.kind == KEY, tables.spend.c.id == tables.keys.c.key_id
        )
        return func.coalesce(spent.scalar_subquery(), 0)

    def belongs(self, key_id: str, user_id: str | None, team_ids: Sequence[str]) -> ColumnElement[bool]:
        """Return the condition that a key is this one, or one of a user or of certain teams."""
        columns = tables.keys.c
        conditions = [columns.key_id == key_id]
        if user_id is not None:
            conditions.append(columns.user_id == user_id)
        if team_ids:
            conditions.append(columns.team_id.in_(team_ids))
        return or_(*conditions)

    def page(self, query: PageQuery, *conditions: ColumnElement[bool], total: int | None = None) -> Page[KeyRecord]:
        """Return the requested page; a page after the last is empty.

        Raises:
            InvalidRequest: the cursor cannot be used.
        """
        if query.sort_by != "spend" or query.after or conditions or query.is_filtered:
            return super().page(query, *conditions, total=total)
        skip = (query.page - 1) * query.size
        tokens = keys_by_spend(self._connection, skip, query.size, descending=query.descending)
        found = {record.token: record for record in self.among("token", tokens)}
        count = count_of(self._connection, self._table, (), self._counts)
        return self._page_of([found[token] for token in tokens], query, count, None)

    def page_of_status(
        self, query: PageQuery, status: str | None, now: datetime, *conditions: ColumnElement[bool]
    ) -> Page[KeyRecord]:
        """Return a page of the keys that are ``active``, ``expired`` or ``revoked``; None for all keys."""
        return self.page(query, *conditions, *(() if status is None else (_has_status(status, now),)))

    def page_of_aliases(self, query: PageQuery, *conditions: ColumnElement[bool]) -> Page[KeyRecord]:
        """Return a page of the keys that have an alias."""
        return self.page(query, tables.keys.c.key_alias.is_not(None), *conditions)


def _has_status(status: str, now: datetime) -> ColumnElement[bool]:
    blocked, expires = tables.keys.c.blocked, tables.keys.c.expires
    if status == "active":
        return and_(blocked.is_(False), or_(expires.is_(None), expires > now))
    if status == "expired":
        return and_(blocked.is_(False), expires <= now)
    return blocked.is_(True) if status == "revoked" else false()


MemberT = TypeVar("MemberT", bound=AttrsInstance)


class _Memberships(Generic[MemberT]):
    """Which users are members of which groups.

    Args:
        connection: the transaction's.
        table: where the memberships are; its primary key is the group and the user.
        record: their class, whose attributes are the table's columns.
        on_change: called with the group and the user of each membership that changes.
    """

    def __init__(
        self, connection: Connection, table: Table, record: type[MemberT], on_change: Callable[[str, str], None]
    ) -> None:
        self._connection = connection
        self._table = table
        self._record = record
        self._on_change = on_change
        self._group, self._user = table.primary_key.columns

    def get(self, group_id: str, user_id: str) -> MemberT | None:
        """Return the membership of a user, or None."""
        found = self._read(self._group == group_id, self._user == user_id)
        return found[0] if found else None

    def are_in(self, group_ids: Sequence[str]) -> ColumnElement[bool]:
        """Return the condition that a user is a member of one of some groups, for a page of users."""
        return tables.users.c.user_id.in_(select(self._user).where(self._group.in_(group_ids)))

    def _grouped_by(self, column: Column[Any], ids: Sequence[str], order: Column[Any]) -> dict[str, list[MemberT]]:
        found: dict[str, list[MemberT]] = {each: [] for each in ids}
        for chunk in in_chunks(ids):
            # The group first, as the index has it: by the other alone, SQLite would read every membership.
            for member in self._read(column.in_(chunk), order=(column, order)):
                found[getattr(member, column.name)].append(member)
        return found

    def _read(
        self, *conditions: ColumnElement[bool], order: tuple[Column[Any], ...] = (), limit: int | None = None
    ) -> list[MemberT]:
        statement = select(self._table).where(*conditions).order_by(*(order or (self._user,))).limit(limit)
        return [self._record(**row._mapping) for row in self._connection.execute(statement)]

    def these(self, group_id: str, user_ids: Sequence[str]) -> list[MemberT]:
        """Return the memberships of some users in a group, sorted by user."""
        found: list[MemberT] = []
        for chunk in in_chunks(sorted(set(user_ids))):
            found += self._read(self._group == group_id, self._user.in_(chunk))
        return found

    def count_in(self, group_ids: Sequence[str]) -> dict[str, int]:
        """Return how many members each of some groups has."""
        found = dict.fromkeys(group_ids, 0)
        for chunk in in_chunks(group_ids):
            counted = select(self._group, func.count()).where(self._group.in_(chunk)).group_by(self._group)
            found.update((row[0], row[1]) for row in self._connection.execute(counted))
        return found

    def first_in(self, counts: Mapping[str, int], most: int, after: str = "") -> dict[str, list[MemberT]]:
        """Return the first members of each of some groups, sorted by user.

        Args:
            counts: how many members each has, as `count_in` returns it.
            most: how many members of a group to return at most.
            after: the user after whom they begin; empty for the first.
        """
        whole = [group_id for group_id, count in counts.items() if count <= most and not after]
        found = self._grouped_by(self._group, whole, self._user)
        for group_id in counts:
            if group_id not in found:
                found[group_id] = self._read(self._group == group_id, self._user > after, limit=most)
        return found

    def put(self, member: MemberT) -> None:
        """Add a membership, or replace it."""
        values = attrs.asdict(member, recurse=False)
        group_id, user_id = values[self._group.name], values[self._user.name]
        self._delete(self._group == group_id, self._user == user_id)
        self._connection.execute(insert(self._table).values(values))
        self._on_change(group_id, user_id)

    def remove(self, group_id: str, user_id: str) -> bool:
        """Remove a user from a group; return whether it was a member."""
        removed = self._delete(self._group == group_id, self._user == user_id) > 0
        if removed:
            self._on_change(group_id, user_id)
        return removed

    def _remove_all(self, group_ids: Sequence[str], user_ids: Sequence[str]) -> None:
        for column, ids in ((self._group, group_ids), (self._user, user_ids)):
            for chunk in in_chunks(ids):
                for row in self._connection.execute(select(self._group, self._user).where(column.in_(chunk))):
                    self._on_change(row[0], row[1])
                self._delete(column.in_(chunk))

    def _delete(self, *conditions: ColumnElement[bool]) -> int:
        return self._connection.execute(delete(self._table).where(*conditions)).rowcount


class MemberRepository(_Memberships[Member]):
    """Which users are members of which teams."""

    def of_teams(self, team_ids: Sequence[str]) -> dict[str, list[Member]]:
        """Return the members of each team, sorted by user."""
        return self._grouped_by(self._group, team_ids, self._user)

    def of_users(self, user_ids: Sequence[str]) -> dict[str, list[Member]]:
        """Return the memberships of each user, sorted by team."""
        return self._grouped_by(self._user, user_ids, self._group)

    def are_teams_of(self, user_id: str) -> ColumnElement[bool]:
        """Return the condition that a team has this user as a member, for a page of teams."""
        return tables.teams.c.team_id.in_(select(self._group).where(self._user == user_id))

    def count_by_budget(self, budget_ids: Sequence[str]) -> dict[str, int]:
        """Return how many memberships name each of some budgets."""
        return count_by(self._connection, tables.members.c.budget_id, budget_ids)

    def of_budget(self, budget_id: str) -> list[Member]:
        """Return the memberships whose limits a budget gives."""
        return self._read(self._table.c.budget_id == budget_id)

    def remove_all(self, *, team_ids: Sequence[str] = (), user_ids: Sequence[str] = ()) -> None:
        """Remove all members of these teams, and these users from every team."""
        self._remove_all(team_ids, user_ids)


class OrganizationMemberRepository(_Memberships[OrganizationMember]):
    """Which users are members of which organizations."""

    def of_organizations(self, organization_ids: Sequence[str]) -> dict[str, list[OrganizationMember]]:
        """Return the members of each organization, sorted by user."""
        return self._grouped_by(self._group, organization_ids, self._user)

    def of_users(self, user_ids: Sequence[str]) -> dict[str, list[OrganizationMember]]:
        """Return the memberships of each user, sorted by organization."""
        return self._grouped_by(self._user, user_ids, self._group)

    def remove_all(self, *, organization_ids: Sequence[str] = (), user_ids: Sequence[str] = ()) -> None:
        """Remove all members of these organizations, and these users from every organization."""
        self._remove_all(organization_ids, user_ids)


#: for very many rows, which are not kept all
_IN_PARTS = {"yield_per": 1_000}

_SPEND_COLUMNS = (
    tables.spend.c.kind,
    tables.spend.c.id,
    tables.spend.c.spend,
    tables.spend.c.period_start,
    tables.spend.c.total_spend,
)


def _spend_record(kind: str, identity: str, spend: int, period_start: int, total_spend: int) -> Spend:
    return Spend(kind, identity, spend, period_start // _MICROSECONDS, total_spend)


def spend_of(connection: Connection, kind: str, ids: Sequence[str]) -> dict[str, Spend]:
    """Return the spend of each of these; zero for those without a record."""
    found = {identity: Spend(kind, identity) for identity in ids}
    for chunk in in_chunks(ids):
        statement = select(*_SPEND_COLUMNS).where(tables.spend.c.kind == kind, tables.spend.c.id.in_(chunk))
        for row in connection.execute(statement):
            found[row.id] = _spend_record(*row)
    return found


def all_spend(connection: Connection, wanted: Callable[[str, str], bool] = lambda _kind, _id: True) -> list[Spend]:
    """Return every spend record.

    Args:
        connection: the transaction's.
        wanted: called with the kind and id of each: whether to return it.
    """
    found: list[Spend] = []
    # in parts: most of many are not wanted
    for rows in connection.execute(select(*_SPEND_COLUMNS), execution_options=_IN_PARTS).partitions():
        found += [_spend_record(*row) for row in rows if wanted(row[0], row[1])]
    return found


class SpendRepository:
    """What everybody with limits spent.

    Args:
        connection: the transaction's.
        on_change: called with the kind and id of each whose spend is set.
    """

    def __init__(self, connection: Connection, on_change: Callable[[str, str], None]) -> None:
        self._connection = connection
        self._on_change = on_change

    def of(self, kind: str, ids: Sequence[str]) -> dict[str, Spend]:
        """Return the spend of each of these."""
        return spend_of(self._connection, kind, ids)

    def set(self, kind: str, identity: str, spend: int, period_start: int) -> None:
        """Set the spend of a period. The total over all periods stays.

        Args:
            kind: as in `Limited`.
            identity: likewise.
            spend: in picodollars.
            period_start: in Unix seconds.
        """
        values = {"spend": spend, "period_start": period_start * _MICROSECONDS}
        # The ledger's writer may insert the same row at the same moment.
        statement = self._insert().values(kind=kind, id=identity, total_spend=0, **values)
        self._connection.execute(statement.on_conflict_do_update(index_elements=["kind", "id"], set_=values))
        self._on_change(kind, identity)

    def put_all(self, records: Sequence[Spend]) -> None:
        """Set the spend of a period and the total over all periods of each of these."""
        for chunk in in_chunks(records):
            rows = [
                {
                    "kind": each.kind,
                    "id": each.id,
                    "spend": each.spend,
                    "period_start": each.period_start * _MICROSECONDS,
                    "total_spend": each.total_spend,
                }
                for each in chunk
            ]
            statement = self._insert()
            changed = {name: statement.excluded[name] for name in ("spend", "period_start", "total_spend")}
            self._connection.execute(statement.on_conflict_do_update(index_elements=["kind", "id"], set_=changed), rows)
            for each in chunk:
                self._on_change(each.kind, each.id)

    def _insert(self) -> Any:
        insert_row: Any = sqlite.insert
        if self._connection.dialect.name == "postgresql":
            # Imported here: the dialect takes 2 MB, which a gateway on SQLite does not need.
            from sqlalchemy.dialects import postgresql

            insert_row = postgresql.insert
        return insert_row(tables.spend)

    def forget(self, kind: str, ids: Sequence[str]) -> None:
        """Delete the spend of subjects that are deleted, also for single models. Their ledger rows stay."""
        self._forget(kind, ids)
        owners = {f"{kind}{SEPARATOR}{id}" for id in ids}
        of_models = self._ids(MODEL_BUDGET, f"{kind}{SEPARATOR}")
        self._forget(MODEL_BUDGET, [id for id in of_models if id.rpartition(SEPARATOR)[0] in owners])

    def forget_members(self, *, team_ids: Sequence[str] = (), user_ids: Sequence[str] = ()) -> None:
        """Delete the spend of the members of these teams, and that of these users in every team.

        Also of those who left: they may come back in the same period, but not to another team with the same id.
        """
        teams, users = set(team_ids), set(user_ids)
        parts = ((id, *id.split(SEPARATOR, 1)) for id in self._ids(MEMBER))
        self._forget(MEMBER, [id for id, team, user in parts if team in teams or user in users])
        names = ((id, *id.split(SEPARATOR, 3)) for id in self._ids(MODEL_BUDGET, MEMBER + SEPARATOR))
        self._forget(MODEL_BUDGET, [id for id, _, team, user, _ in names if team in teams or user in users])

    def _ids(self, kind: str, start: str = "") -> list[str]:
        """Return the ids of one kind that begin with a text. LIKE would not tell apart upper and lower case."""
        id = tables.spend.c.id
        begins = func.substr(id, 1, len(start)) == start
        return list(self._connection.execute(select(id).where(tables.spend.c.kind == kind, begins)).scalars())

    def _forget(self, kind: str, ids: Sequence[str]) -> None:
        for chunk in in_chunks(ids):
            self._connection.execute(
                delete(tables.spend).where(tables.spend.c.kind == kind, tables.spend.c.id.in_(chunk))
            )
