"""Who spent how much, the most first, as the budgets have it."""

from __future__ import annotations

from sqlalchemy import Connection, Table, and_, func, select

from twisted_vllm.access.records import Spend
from twisted_vllm.store.spend import spend_of
from twisted_vllm.store.tables import keys, spend, users


def keys_by_spend(connection: Connection, skip: int, limit: int) -> dict[str, Spend]:
    """Return the tokens of keys and what each spent."""
    found = _by_spend(connection, keys, "token", "key_id", "key", skip, limit)
    spent = spend_of(connection, "key", list(found.values()))
    return {token: spent[key_id] for token, key_id in found.items()}


def users_by_spend(connection: Connection, skip: int, limit: int) -> dict[str, Spend]:
    """Return the ids of users and what each spent."""
    found = _by_spend(connection, users, "user_id", "user_id", "user", skip, limit)
    spent = spend_of(connection, "user", list(found))
    return {user_id: spent[user_id] for user_id in found}


def _by_spend(
    connection: Connection, table: Table, identity: str, payer: str, kind: str, skip: int, limit: int
) -> dict[str, str]:
    columns = (table.c[identity], table.c[payer])
    paid = and_(spend.c.kind == kind, spend.c.id == table.c[payer])
    found = select(*columns).join_from(table, spend, paid, isouter=True)
    found = found.order_by(func.coalesce(spend.c.spend, 0).desc(), columns[0]).offset(skip).limit(limit)
    return {row[0]: row[1] for row in connection.execute(found)}
