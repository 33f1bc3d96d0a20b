"""What a step of the schema may not do while older gateways use the tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import Connection, event

from tests.storage.migrations import upgrade
from twisted_vllm.storage.tables import VERSION_TABLE

_NAME = r'(?:IF (?:NOT )?EXISTS )?(?:ONLY )?"?(?:\w+"?\."?)?(\w+)"?'
_REFUSES = "refuses what older code writes"
#: a statement, and what older code meets after it
_BREAKS = {
    rf"ALTER TABLE {_NAME} DROP ": "takes away what older code names",
    r"DROP (?:TABLE|INDEX|VIEW|SEQUENCE|TYPE)()": "takes away what older code names",
    rf"ALTER (?:TABLE|INDEX) {_NAME} RENAME": "renames what older code names",
    rf"ALTER TABLE {_NAME} ALTER (?:COLUMN )?\S+ (?:SET DATA )?TYPE ": "writes all rows anew with another type",
    rf"ALTER TABLE {_NAME} ALTER (?:COLUMN )?\S+ (?:SET NOT NULL|DROP DEFAULT)": _REFUSES,
    rf"ALTER TABLE {_NAME} ADD (?:CONSTRAINT|CHECK|UNIQUE|FOREIGN|PRIMARY)": _REFUSES,
    rf"CREATE UNIQUE INDEX .* ON {_NAME}": _REFUSES,
    rf"CREATE (?:OR REPLACE )?(?:CONSTRAINT )?TRIGGER .* ON {_NAME}": "acts on what older code writes",
    rf"(?:DELETE FROM|TRUNCATE(?: TABLE)?|UPDATE) {_NAME}": "changes rows that older code goes on writing",
}
_CREATED = rf"CREATE TABLE {_NAME}"
_ADDED = rf"ALTER TABLE {_NAME} ADD (?:COLUMN )?(?!CONSTRAINT|CHECK|UNIQUE|FOREIGN|PRIMARY)(.*)"


def faults_of(statements: Sequence[str]) -> list[str]:
    """Return what is wrong with the statements of a step that only expands, each with its statement."""
    created = {VERSION_TABLE}
    found = []
    for statement in (" ".join(each.split()) for each in statements):
        if match := re.match(_CREATED, statement, re.IGNORECASE):
            created.add(match[1])
        for pattern, fault in _BREAKS.items():
            if (match := re.match(pattern, statement, re.IGNORECASE)) and match[1] not in created:
                found.append(f"{fault}: {statement}")
        if (match := re.match(_ADDED, statement, re.IGNORECASE)) and match[1] not in created:
            definition = match[2].upper()
            needs_value = "NOT NULL" in definition and "DEFAULT" not in definition
            if needs_value or re.search("UNIQUE|REFERENCES|CHECK", definition):
                found.append(f"{_REFUSES}: {statement}")
    return found


def statements_of(connection: Connection, before: str, revision: str) -> list[str]:
    """Return the statements of one step, which runs on a database at the revision before."""
    upgrade(connection, before)
    found: list[str] = []

    def note(_connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA")):
            found.append(statement)

    event.listen(connection, "before_cursor_execute", note)
    try:
        upgrade(connection, revision)
    finally:
        event.remove(connection, "before_cursor_execute", note)
    return found
