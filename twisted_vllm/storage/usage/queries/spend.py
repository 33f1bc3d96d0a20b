"""Who spent how much, the most first, as the budgets have it."""

from __future__ import annotations

from sqlalchemy import Connection, Table, and_, func, select

from twisted_vllm.storage.tables import keys, spend, users


def keys_by_spend(connection: Connection, skip: int, limit: int) -> list[str]:
    """Return the tokens of keys."""
    return _by_spend(connection, keys, "token", "key_id", "key", skip, limit)


def users_by_spend(connection: Connection, skip: int, limit: int) -> list[str]:
    """Return the ids of users."""
    return _by_spend(connection, users, "user_id", "user_id", "user", skip, limit)


def _by_spend(
    connection: Connection, table: Table, identity: str, payer: str, kind: str, skip: int, limit: int
) -> list[str]:
    paid = and_(spend.c.kind == kind, spend.c.id == table.c[payer])
    found = select(table.c[identity]).join_from(table, spend, paid, isouter=True)
    found = found.order_by(func.coalesce(spend.c.spend, 0).desc(), table.c[identity]).offset(skip).limit(limit)
    return list(connection.execute(found).scalars())
