"""Migrations declare whether older code goes on working, and those that say so keep it."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from tests.storage.expanding import faults_of, statements_of
from tests.storage.migrations import scripts
from tests.storage.test_schema import engine_for
from twisted_vllm.storage import schema
from twisted_vllm.storage.schema_steps import Step, needed, number_of, pending, steps_of
from twisted_vllm.storage.tables import VERSION_TABLE

#: the last migration of the time before steps were declared
LAST_UNDECLARED = "0010_partitions"


def migration(revision: str, step: str | None = None, works_with: str | None = None) -> Any:
    declared = {"STEP": step, "WORKS_WITH": works_with}
    return SimpleNamespace(revision=revision, **{name: value for name, value in declared.items() if value is not None})


CHAIN = steps_of(
    [
        migration("0001_a"),
        migration("0002_b"),
        migration("0003_c", "expand"),
        migration("0004_d", "contract", "0003_c"),
        migration("0005_e", "expand"),
        migration("0006_f", "contract", "0004_d"),
    ]
)


def real() -> list[Step]:
    return steps_of(script.module for script in scripts())


def test_older_code_works_until_a_step_takes_away_what_it_needs() -> None:
    assert [step.works_with for step in CHAIN] == ["0001_a", "0002_b", "0002_b", "0003_c", "0003_c", "0004_d"]
    assert needed(CHAIN) == "0005_e"


@pytest.mark.parametrize(
    ("current", "by_itself", "asked_for"),
    [
        ("0001_a", ["0002_b", "0003_c"], ["0002_b", "0003_c", "0004_d", "0005_e", "0006_f"]),
        ("0003_c", [], ["0004_d", "0005_e", "0006_f"]),
        ("0004_d", ["0005_e"], ["0005_e", "0006_f"]),
        ("0006_f", [], []),
    ],
)
def test_a_start_stops_before_what_must_be_asked_for(current: str, by_itself: list[str], asked_for: list[str]) -> None:
    assert [step.revision for step in pending(CHAIN, current, contract=False)] == by_itself
    assert [step.revision for step in pending(CHAIN, current, contract=True)] == asked_for


@pytest.mark.parametrize(
    "wrong",
    [
        [migration("0001_a"), migration("0002_b", "expand"), migration("0003_c")],
        [migration("0001_a"), migration("0002_b", "widen")],
        [migration("0001_a"), migration("0002_b", "expand", "0001_a")],
        [migration("0001_a"), migration("0002_b", "contract")],
        [migration("0001_a"), migration("0002_b", "contract", "0002_b")],
        [migration("0001_a"), migration("0002_b"), migration("0003_c", "contract", "0001_a")],
    ],
)
def test_a_migration_that_declares_nothing_or_nonsense_is_named(wrong: list[Any]) -> None:
    with pytest.raises(ValueError, match=wrong[-1].revision):
        steps_of(wrong)


@pytest.mark.parametrize(
    ("revision", "number"),
    [("0010_partitions", 10), ("0010", -1), ("", -1), ("10_x", -1), ("abcd_x", -1), ("a1b2c3d4", -1), ("²²²²_x", -1)],
)
def test_only_this_program_s_revisions_have_a_number(revision: str, number: int) -> None:
    assert number_of(revision) == number


def test_the_code_says_what_the_migrations_say() -> None:
    steps = real()
    assert [number_of(step.revision) for step in steps] == list(range(1, len(steps) + 1))
    assert [step.revision for step in steps if not step.is_declared][-1] == LAST_UNDECLARED
    assert (steps[-1].revision, needed(steps), steps[-1].works_with) == (schema.HEAD, schema.NEEDED, schema.WORKS_WITH)


def test_steps_that_expand_leave_older_code_what_it_needs(tmp_path: Any) -> None:
    """The PostgreSQL of the same test is in tests/services."""
    steps = real()
    for before, step in pairwise(steps):
        if step.is_declared and not step.contracts:
            engine = engine_for(tmp_path / f"{step.revision}.sqlite")
            with engine.begin() as connection:
                assert faults_of(statements_of(connection, before.revision, step.revision)) == []
            engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE keys",
        "drop index keys_id",
        'ALTER TABLE "keys" DROP COLUMN tags',
        "ALTER TABLE keys RENAME tags TO labels",
        "ALTER TABLE keys RENAME TO virtual_keys",
        "ALTER TABLE public.keys ALTER COLUMN tags TYPE TEXT",
        "ALTER TABLE keys ALTER COLUMN tags SET NOT NULL",
        "ALTER TABLE keys ALTER COLUMN tags DROP DEFAULT",
        "ALTER TABLE keys ADD CONSTRAINT one UNIQUE (tags)",
        "ALTER TABLE keys ADD COLUMN origin TEXT NOT NULL",
        "ALTER TABLE keys ADD COLUMN origin TEXT UNIQUE",
        "ALTER TABLE keys ADD COLUMN owner TEXT REFERENCES users (id)",
        "CREATE UNIQUE INDEX one ON keys (tags)",
        "CREATE TRIGGER one BEFORE INSERT ON keys BEGIN SELECT 1; END",
        "UPDATE keys SET tags = '[]'",
        "DELETE FROM keys",
        "TRUNCATE keys",
    ],
)
def test_what_breaks_older_code_is_found(statement: str) -> None:
    [fault] = faults_of([statement])
    assert statement in fault


def test_what_older_code_does_not_see_is_allowed() -> None:
    statements = [
        "ALTER TABLE keys ADD COLUMN origin TEXT",
        "ALTER TABLE keys ADD COLUMN type TEXT DEFAULT 'x' NOT NULL",
        "ALTER TABLE keys ALTER COLUMN tags DROP NOT NULL",
        "CREATE INDEX keys_origin ON keys (origin)",
        "\nCREATE TABLE origins (\n\tid INTEGER NOT NULL UNIQUE\n)",
        "CREATE UNIQUE INDEX origins_id ON origins (id)",
        "UPDATE origins SET id = 1",
        f"UPDATE {VERSION_TABLE} SET version_num = '1'",
    ]
    assert faults_of(statements) == []
