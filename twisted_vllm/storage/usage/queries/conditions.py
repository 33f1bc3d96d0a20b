"""What is asked of the ledger's rows, and of the tables that they refer to: conditions, columns and joins."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, func, literal_column, select

from twisted_vllm.storage.usage.queries.plan import MODEL, ROUTE, SERVER
from twisted_vllm.storage.usage.tables import (
    END_USER,
    KEY,
    TAG,
    TEAM,
    USER,
    usage,
    usage_payer_tags,
    usage_payers,
    usage_targets,
)

# not a parameter: PostgreSQL could not tell that what is selected is what is grouped by
_NONE = literal_column("''", Text)

#: what rows are grouped by
COLUMNS: Mapping[str, ColumnElement[Any]] = {
    KEY: usage_payers.c.key_id,
    USER: func.coalesce(usage_payers.c.user_id, _NONE),
    TEAM: func.coalesce(usage_payers.c.team_id, _NONE),
    END_USER: func.coalesce(usage.c.end_user, _NONE),
    TAG: usage_payer_tags.c.tag,
    MODEL: usage_targets.c.model,
    ROUTE: usage_targets.c.route,
    SERVER: usage_targets.c.server,
}
_OF_PAYERS = {KEY: usage_payers.c.key_id, USER: usage_payers.c.user_id, TEAM: usage_payers.c.team_id}
_OF_TARGETS = {name: usage_targets.c[name] for name in (MODEL, ROUTE, SERVER)}


def payers_that(equals: Mapping[str, str]) -> Select[Any] | None:
    """Return the statement for the numbers of the payers that filters leave; None where they leave all."""
    conditions = [_OF_PAYERS[name] == value for name, value in equals.items() if name in _OF_PAYERS]
    if TAG in equals:
        tagged = select(usage_payer_tags.c.payer).where(usage_payer_tags.c.tag == equals[TAG])
        conditions.append(usage_payers.c.id.in_(tagged))
    return select(usage_payers.c.id).where(*conditions) if conditions else None


def row_conditions(equals: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Return what holds of the rows whose dimensions have certain values."""
    found: list[ColumnElement[bool]] = []
    payers = payers_that(equals)
    if payers is not None:
        found.append(usage.c.payer.in_(payers))
    if END_USER in equals:
        found.append(usage.c.end_user == equals[END_USER])
    asked = [_OF_TARGETS[name] == value for name, value in equals.items() if name in _OF_TARGETS]
    if asked:
        found.append(usage.c.target.in_(select(usage_targets.c.id).where(*asked)))
    return found


def joined(statement: Select[Any], names: Collection[str]) -> Select[Any]:
    """Return a statement about rows with the tables that have the dimensions that it names."""
    if not {KEY, USER, TEAM}.isdisjoint(names):
        statement = statement.join(usage_payers, usage_payers.c.id == usage.c.payer)
    if TAG in names:
        statement = statement.join(usage_payer_tags, usage_payer_tags.c.payer == usage.c.payer)
    if not _OF_TARGETS.keys().isdisjoint(names):
        statement = statement.join(usage_targets, usage_targets.c.id == usage.c.target)
    return statement
