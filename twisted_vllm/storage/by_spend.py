"""Keys and users in the order of what they spent in their budgets' periods.

The spend of a subject changes with its requests, so no index has it: the narrow rows of `spend` are sorted, and only
the subjects of one page are looked up. Those that spent nothing are read by their ids.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, Table, exists, func, select

from twisted_vllm.ratelimit.allowance import KEY, USER
from twisted_vllm.storage.tables import keys, spend, users


def keys_by_spend(connection: Connection, skip: int, limit: int, *, descending: bool = True) -> list[str]:
    """Return tokens of keys, those that spent most in their budgets' periods first.

    Args:
        connection: of a transaction that reads.
        skip: how many to leave out.
        limit: how many to return at most.
        descending: False for those that spent least first.
    """
    return _by_spend(connection, keys, keys.c.token, keys.c.key_id, KEY, skip, limit, descending)


def users_by_spend(connection: Connection, skip: int, limit: int) -> list[str]:
    """Return ids of users, as `keys_by_spend`."""
    return _by_spend(connection, users, users.c.user_id, users.c.user_id, USER, skip, limit, True)


def _by_spend(
    connection: Connection,
    table: Table,
    identity: Column[str],
    spender: Column[str],
    kind: str,
    skip: int,
    limit: int,
    descending: bool,
) -> list[str]:
    # All kinds are read: by the index, SQLite would look up each row of the kind, which takes ten times as long.
    of_kind = (func.coalesce(spend.c.kind, "") == kind, spend.c.spend > 0)
    # A deleted subject may leave a row behind, as late rows of the ledger bring it back: it takes a place, unseen.
    has_spent = (spend.c.kind == kind, spend.c.spend > 0)
    order = (spend.c.spend.desc(), spend.c.id.desc()) if descending else (spend.c.spend, spend.c.id)
    spent = select(spend.c.id).where(*of_kind).order_by(*order)
    others = select(spender).where(~exists().where(*has_spent, spend.c.id == spender))
    others = others.order_by(spender.desc() if descending else spender)
    counts = (
        select(func.count()).select_from(spend).where(*of_kind),
        select(func.count()).select_from(table).where(~exists().where(*has_spent, spend.c.id == spender)),
    )
    first, second = (spent, others) if descending else (others, spent)
    found = list(connection.execute(first.limit(limit).offset(skip)).scalars())
    if len(found) < limit:
        # Where the first ends is known, if the page has its end.
        before = skip + len(found) if found or not skip else None
        if before is None:
            before = connection.execute(counts[0] if descending else counts[1]).scalar_one()
        rest = second.limit(limit - len(found)).offset(max(skip - before, 0))
        found += connection.execute(rest).scalars()
    known = connection.execute(select(spender, identity).where(spender.in_(found)))
    tokens = {row[0]: row[1] for row in known}
    return [tokens[each] for each in found if each in tokens]
