"""Collects the statements that operations issue, and finds those whose plan reads the whole of a large table.

    with Plans() as plans:
        with plans.during("/key/list"):
            …                               # any engine, any thread
        scans = plans.scans(connection, LARGE)
        assert not unexplained(scans, EXCEPTIONS)

The database must be filled and analysed (`tests.storage.filled_database`): an empty one tells nothing.

Some tables are large in each part that an index finds: a kind of sums has millions of them. `NEEDED` says which columns
a search of these must name; one without is a scan.

A walk through an index that a LIMIT ends is no scan, if nothing is filtered out on the way: then it reads no more rows
than it returns. PostgreSQL says how far it expects to walk; a fifth of the way at most is no scan either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import attrs
from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine

from twisted_vllm.storage.usage.partitions import all_partitions, rows_in
from twisted_vllm.storage.usage.tables import usage

#: nodes of PostgreSQL's plans that end as soon as enough rows came
_STOPPING = {"Limit", "Append", "Merge Append", "Subquery Scan", "Result", "Incremental Sort", "LockRows"}
#: the part of an index that a walk may go through
_WALKED = 0.2
_SQLITE_SCAN = re.compile(r"SCAN (\w+)(?: USING (COVERING )?INDEX \w+)?")
_SQLITE_SEARCH = re.compile(r"SEARCH (\w+) USING .*?\((.*)\)")
_ALIAS = re.compile(r'(?:FROM|JOIN|,) (?:\w+\.)?"?(vllm_passthrough_\w+)"? AS "?(\w+)"?')
_PARTITION = re.compile(r"\bp([0-9]{4}_[0-9]{2})\.")

#: what a search of a table must name
NEEDED = {
    "vllm_passthrough_usage": ("time",),
    "vllm_passthrough_usage_lookups": ("value",),
    "vllm_passthrough_usage_sums": ("kind", "start"),
}


@attrs.frozen
class Statement:
    """A statement that was issued.

    Attributes:
        operation: what issued it.
        text: in the driver's form.
        parameters: likewise.
    """

    operation: str
    text: str
    parameters: Any


@attrs.frozen
class Scan:
    """A statement that reads the whole of a large table.

    Attributes:
        operation: what issued it.
        table: the table.
        text: the statement.
        plan: the step of the plan.
    """

    operation: str
    table: str
    text: str
    plan: str


@attrs.frozen
class Excepted:
    """Scans that are right.

    Attributes:
        operation: a regular expression for the operations.
        statement: a text that the statement contains.
        reason: why the table is read as a whole.
    """

    operation: str
    statement: str
    reason: str

    def covers(self, scan: Scan) -> bool:
        """Return whether a scan is meant."""
        return re.search(self.operation, scan.operation) is not None and self.statement in scan.text


class Plans:
    """The statements that all engines issue inside of the block."""

    def __init__(self) -> None:
        self.statements: dict[tuple[str, str], Statement] = {}
        self._operation = ""

    def __enter__(self) -> Self:
        event.listen(Engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Engine, "before_cursor_execute", self._note)

    @contextmanager
    def during(self, operation: str) -> Iterator[None]:
        """Note what an operation issues."""
        self._operation = operation
        try:
            yield
        finally:
            self._operation = ""

    def _note(
        self, _connection: Connection, _cursor: Any, text: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if self._operation and not many and text.lstrip().upper().startswith(("SELECT", "WITH")):
            self.statements[self._operation, text] = Statement(self._operation, text, parameters)

    def scans(self, connection: Connection, large: Collection[str]) -> list[Scan]:
        """Return the statements that read the whole of a large table.

        Args:
            connection: on the same database.
            large: the tables; partitions of a table have its name and something behind it.
        """
        explain = _explain_postgresql if connection.dialect.name == "postgresql" else _explain_sqlite
        found = []
        for statement in list(self.statements.values()):
            found += [
                Scan(statement.operation, table, statement.text, plan)
                for table, plan in explain(connection, statement)
                if table in large
            ]
        return found


def _table_of(name: str) -> str:
    """Return the table that a table is a partition of, or its own name."""
    found = re.fullmatch(r"(\w+?)_(?:[0-9]{4}_[0-9]{2}(?:_[0-9]{2})?|former|default)", name)
    return name if found is None else found[1]


def unexplained(scans: Sequence[Scan], exceptions: Sequence[Excepted]) -> list[Scan]:
    """Return the scans that no exception covers."""
    return [scan for scan in scans if not any(each.covers(scan) for each in exceptions)]


def _explain_sqlite(connection: Connection, statement: Statement) -> Iterator[tuple[str, str]]:
    _attach(connection, statement.text)
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement.text}", statement.parameters).all()
    steps = [str(row[3]) for row in rows]
    sorts = any(step.startswith("USE TEMP B-TREE FOR ORDER") for step in steps)
    aliases: dict[str, str] = {alias: table for table, alias in _ALIAS.findall(statement.text)}
    for step in steps:
        search = _SQLITE_SEARCH.match(step)
        if search is not None:
            table = aliases.get(str(search[1]), str(search[1]))
            if not _names_enough(table, str(search[2])):
                yield table, step
        match = _SQLITE_SCAN.match(step)
        if match is None:
            continue
        table = aliases.get(str(match[1]), str(match[1]))
        in_order = "USING" in step or table == usage.name
        is_walk = in_order and " LIMIT " in statement.text and not sorts
        if not (is_walk and not _filters(statement.text)):
            yield table, step


def _names_enough(table: str, condition: str) -> bool:
    return all(re.search(rf"\b{column}\b", condition) for column in NEEDED.get(table, ()))


def _attach(connection: Connection, statement: str) -> None:
    """Open the partition of SQLite that a statement reads."""
    names = {name.replace("_", "-") for name in _PARTITION.findall(statement)}
    for partition in all_partitions(connection) if names else ():
        if partition.name in names:
            rows_in(connection, partition)


def _filters(text: str) -> bool:
    """Return whether a statement leaves rows out that a walk through an index comes by."""
    where = text.partition("WHERE ")[2].partition("ORDER BY")[0]
    return bool(re.sub(r"[\w.]+ IS NOT NULL( AND)?", "", where).strip())


def _explain_postgresql(connection: Connection, statement: Statement) -> Iterator[tuple[str, str]]:
    # A small table is read as a whole where an index would serve a large one: what is left has no index.
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    found = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement.text}", statement.parameters).scalar_one()
    plan = json.loads(found) if isinstance(found, str) else found
    yield from _scans_below(plan[0]["Plan"], stops=False, share=1.0)


def _scans_below(node: dict[str, Any], *, stops: bool, share: float) -> Iterator[tuple[str, str]]:
    """Return the scans below a step of a plan.

    Args:
        node: the step.
        stops: whether a LIMIT above may end it.
        share: the part of its cost that is expected until then.
    """
    kind = node["Node Type"]
    reads_all = "Relation Name" in node and "Index Cond" not in node and "Recheck Cond" not in node
    if reads_all and (kind == "Seq Scan" or not stops or ("Filter" in node and share > _WALKED)):
        yield _table_of(node["Relation Name"]), f"{kind} {node.get('Index Name', '')} {node.get('Filter', '')}"
    elif "Relation Name" in node and not reads_all:
        table, condition = _table_of(node["Relation Name"]), str(node.get("Index Cond", node.get("Recheck Cond")))
        if not _names_enough(table, condition):
            yield table, f"{kind} {node.get('Index Name', '')} {condition}"
    stops = kind == "Limit" or (stops and kind in _STOPPING)
    for child in node.get("Plans", ()):
        if kind == "Limit" and child["Total Cost"]:
            share = node["Total Cost"] / child["Total Cost"]
        yield from _scans_below(child, stops=stops, share=share)
