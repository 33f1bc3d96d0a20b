"""The scope of a report: the usage that the caller may see, and the time range."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import attrs
from sqlalchemy import Connection, select

from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.lists import ids_of
from twisted_vllm.admin.models import MOMENT_WORDS
from twisted_vllm.admin.reports.models import ActivityFilters, Filters
from twisted_vllm.admin.self_service import OwnScope
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.roles import reads_everything
from twisted_vllm.errors import InvalidRequest, RouteNotAllowed
from twisted_vllm.storage.tables import members
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.days import Entities
from twisted_vllm.storage.usage.queries.lookups import RowFilter
from twisted_vllm.storage.usage.queries.plan import DIMENSIONS, MODEL, SERVER, microseconds, moment_of
from twisted_vllm.storage.usage.queries.rows import key_id_of, key_labels
from twisted_vllm.storage.usage.tables import DAY_US, END_USER, KEY, TAG, TEAM, USER

#: days of LiteLLM's reports without dates, besides today
RECENT_DAYS = 30

_DATE_LENGTH = len("2026-03-01")
_OFFSET = re.compile("-?[0-9]{1,3}")
_KEY_ID = re.compile("[0-9a-f]{32}")
_OWN_USAGE_ONLY = "A virtual key may see its own usage only; the master key sees everybody's."

#: the dimensions of usage, and the parameters that filter by them
_FILTERS = {USER: "user_id", TEAM: "team_id", END_USER: "end_user", MODEL: "model", TAG: "tag"}


@attrs.frozen
class UsageScope:
    """The usage that a caller may see: all for administrators, its own for a key, that of all their keys for people.

    Attributes:
        principal: the caller.
        is_master: returns whether a key is the master key.
        is_person: whether the caller is its user and no key: a token of a login service, or whoever signed in with one.
            A key may be in the hands of a program, and sees no other.
    """

    principal: Principal
    is_master: Callable[[str], bool]
    is_person: bool = False

    @classmethod
    def of(cls, call: AdminCall) -> UsageScope:
        """Return the scope of a call."""
        principal, own = call.principal, call.scope
        is_person = isinstance(own, OwnScope) and own.token is None and bool(principal.role and principal.user_id)
        return cls(principal, call.context.authenticator.is_master, is_person)

    @property
    def sees_all(self) -> bool:
        """Whether the caller sees all usage."""
        return reads_everything(self.principal)

    def find_key(self, connection: Connection, name: str) -> str | None:
        """Return the id of a key; None if there is no such key, ``""`` for the master key.

        Args:
            connection: a connection to the database.
            name: the key, its hash or its id.

        Raises:
            RouteNotAllowed: it is not the caller's own key, and the caller is no administrator.
        """
        if self.sees_all and self.is_master(name):
            return ""
        found = name if _KEY_ID.fullmatch(name) else key_id_of(connection, token_of(name))
        if not self._owns(connection, found):
            raise RouteNotAllowed(_OWN_USAGE_ONLY)
        return found

    def _owns(self, connection: Connection, key_id: str | None) -> bool:
        """Return whether the caller may ask for the usage of a key."""
        if self.sees_all or key_id == self.principal.key_id:
            return True
        if not self.is_person or key_id is None:
            return False
        label = key_labels(connection, [key_id]).get(key_id)
        return label is not None and label.user_id == self.principal.user_id

    def of_alias(self, transaction: Transaction, wanted: RowFilter, alias: str) -> RowFilter | None:
        """Return a filter for the rows of the key with an alias besides; None if nothing can match.

        Raises:
            RouteNotAllowed: it is not the caller's own key, and the caller is no administrator.
        """
        record = transaction.keys.by_alias(alias)
        key_id = None if record is None else record.key_id
        if not self._owns(transaction.connection, key_id):
            raise RouteNotAllowed(_OWN_USAGE_ONLY)
        if key_id is None or wanted.equals.get(KEY, key_id) != key_id:
            return None
        return attrs.evolve(wanted, equals={**wanted.equals, KEY: key_id})

    def restrict(self, connection: Connection, equals: Mapping[str, str]) -> dict[str, str]:
        """Return filters that show no more than the caller may see.

        That is its own, for people that of all their keys, and all of a team that the caller's user administers.

        Raises:
            RouteNotAllowed: they ask for another user or team than the caller's.
        """
        if self.sees_all or (TEAM in equals and self._administers(connection, equals[TEAM])):
            return dict(equals)
        if equals.get(USER, self.principal.user_id) != self.principal.user_id:
            raise RouteNotAllowed(_OWN_USAGE_ONLY)
        if self.is_person:
            # of another team it is still its own usage
            return {**equals, USER: self.principal.user_id or ""}
        if equals.get(TEAM, self.principal.team_id) != self.principal.team_id:
            raise RouteNotAllowed(_OWN_USAGE_ONLY)
        return {**equals, KEY: self.principal.key_id}

    def _administers(self, connection: Connection, team_id: str) -> bool:
        """Return whether the caller's user, and not only a label, administers a team."""
        if not self.principal.role:
            return False
        columns = members.c
        wanted = (columns.team_id == team_id, columns.user_id == self.principal.user_id, columns.role == "admin")
        return connection.execute(select(columns.team_id).where(*wanted)).first() is not None

    def filters(self, connection: Connection, query: Filters) -> dict[str, str] | None:
        """Return the values that a query wants dimensions to have; None if nothing can match.

        Raises:
            RouteNotAllowed: the caller may not see that.
        """
        equals = {name: value for name, parameter in _FILTERS.items() if (value := getattr(query, parameter))}
        if query.api_key:
            key_id = self.find_key(connection, query.api_key)
            if key_id is None:
                return None
            equals[KEY] = key_id
        return self.restrict(connection, equals)

    def activity_filters(
        self, connection: Connection, query: ActivityFilters, entities: Entities
    ) -> dict[str, str] | None:
        """Return the filters of the daily activity; None if nothing can match.

        As in LiteLLM, a virtual key that asks for users sees the usage of all keys of its user, or its own if it has
        no user. One that asks for teams sees its own usage in its team.

        Raises:
            RouteNotAllowed: the caller may not see that.
        """
        equals = {MODEL: query.model} if query.model else {}
        own, among = self.principal, entities.among
        if query.api_key:
            key_id = self.find_key(connection, query.api_key)
            if key_id is None:
                return None
            equals[KEY] = key_id
        if self.sees_all:
            return equals
        if entities.dimension == USER:
            if among is not None and set(among) != {own.user_id}:
                raise RouteNotAllowed("A virtual key may see the usage of its own user only.")
            if own.user_id is not None:
                equals[USER] = own.user_id
            else:
                equals[KEY] = own.key_id
            return equals
        if entities.dimension != TEAM or (among is not None and set(among) != {own.team_id}):
            raise RouteNotAllowed("A virtual key may see its own usage in its own team only.")
        return {**equals, TEAM: own.team_id or "", KEY: own.key_id}


def entities_of(dimension: str, among: str, without: str = "") -> Entities:
    """Return the entities that a request for the daily activity names.

    Args:
        dimension: as in `Entities`.
        among: the ids to show, separated by commas; empty for all.
        without: the ids to leave out, likewise.

    Raises:
        InvalidRequest: there are too many.
    """
    return Entities(dimension, ids_of(among) or None, ids_of(without))


def one_entity(dimension: str, id: str) -> Entities:
    """Return one entity, whose id may have commas; all, if the id is empty."""
    return Entities(dimension, (id,) if id else None)


@attrs.frozen
class Span:
    """A span of time.

    Attributes:
        start: its first microsecond since 1970; None for no start.
        end: the first microsecond after it; None for no end.
    """

    start: int | None
    end: int | None


def span_of(start: str, end: str, names: tuple[str, str] = ("start_date", "end_date")) -> Span:
    """Return the span between two dates or moments, both included. An end before the start makes it empty.

    Raises:
        InvalidRequest: one of them is malformed.
    """
    first, last = _moment(start, names[0]), _moment(end, names[1])
    if last is not None:
        last += DAY_US if len(end) == _DATE_LENGTH else 1
    if first is not None and last is not None:
        last = max(first, last)
    return Span(first, last)


def days_of(start: str, end: str, now: datetime, recent: int = RECENT_DAYS) -> tuple[int, int]:
    """Return the whole days between two dates, both included, as microseconds since 1970.

    Args:
        start: the first date; ``""`` for so many days before the last.
        end: the last date; ``""`` for today, or for the first date if that is later.
        now: the current time.
        recent: the number of days before the last, if there is no first date.

    Raises:
        InvalidRequest: one of them is malformed.
    """
    for name, text in (("start_date", start), ("end_date", end)):
        if text and len(text) != _DATE_LENGTH:
            raise InvalidRequest(f"`{name}` must be a date, as in 2026-03-01.", param=name)
    span = span_of(start, end)
    last = span.end
    if last is None:
        last = microseconds(now) // DAY_US * DAY_US + DAY_US
        if span.start is not None:
            last = max(last, span.start + DAY_US)
    first = last - (recent + 1) * DAY_US if span.start is None else span.start
    return max(first, 0), last


def local_days_of(query: ActivityFilters, now: datetime) -> tuple[int, int]:
    """Return the whole days in UTC that cover those of a query, which are the caller's.

    Raises:
        InvalidRequest: a date is malformed, or the time zone is none.
    """
    start, end = days_of(query.start_date, query.end_date, now)
    if not query.timezone:
        return start, end
    if not _OFFSET.fullmatch(query.timezone):
        raise InvalidRequest("`timezone` must be the minutes to UTC, as in -120.", param="timezone")
    minutes = int(query.timezone)
    # east of UTC, the first day began before; west of it, the last one ends later
    return start - (DAY_US if minutes < 0 and start else 0), end + (DAY_US if minutes > 0 else 0)


def check_servers(scope: UsageScope, group_by: Sequence[str], server: str) -> None:
    """Check that the caller may see which servers answered, if it asks for that.

    Raises:
        RouteNotAllowed: it may not.
    """
    if not scope.sees_all and (SERVER in group_by or server):
        raise RouteNotAllowed("Which server answered is for administrators.")


def dimensions_of(text: str) -> tuple[str, ...]:
    """Return the named dimensions, in the order of `DIMENSIONS`.

    Raises:
        InvalidRequest: a name is not one of them.
    """
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    for number, name in enumerate(names):
        if name not in DIMENSIONS:
            raise InvalidRequest(
                f"`group_by[{number}]` must be one of {', '.join(DIMENSIONS)}.", param=f"group_by[{number}]"
            )
    return tuple(name for name in DIMENSIONS if name in names)


def iso(moment: int) -> str:
    """Return a moment in microseconds since 1970 as LiteLLM writes it."""
    return moment_of(moment).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _moment(text: str, name: str) -> int | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        if found + timedelta(days=32) < found or found.year < 1970:
            raise ValueError
    except (ValueError, OverflowError):
        raise InvalidRequest(f"`{name}` must be {MOMENT_WORDS}.", param=name) from None
    return microseconds(found)
