"""Which migrations run by themselves, and which older code works with the tables that they leave.

A migration after the first ten declares `STEP`:

- ``expand``: code of the release before goes on working while and after it runs. Every start runs it.
- ``contract``: it takes away what older code needs. It runs only when an operator asks for it, who sees that no older
  gateway runs. It declares `WORKS_WITH` too, the oldest revision whose code works with what it leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs

EXPAND, CONTRACT = "expand", "contract"


class Migration(Protocol):
    """A migration's module, as Alembic's scripts have it."""

    revision: str


@attrs.frozen
class Step:
    """A migration, and what it leaves.

    Attributes:
        revision: the schema's revision after it.
        is_declared: whether it declares `STEP`; the first ten do not. No older code works with what those leave.
        contracts: whether it runs only when asked for.
        works_with: the oldest revision whose code works with the tables after it.
    """

    revision: str
    is_declared: bool
    contracts: bool
    works_with: str


def number_of(revision: str) -> int:
    """Return the number that a revision begins with; -1 if it is not one of this program's."""
    number, _, name = revision.partition("_")
    return int(number) if name and len(number) == 4 and number.isascii() and number.isdigit() else -1


def steps_of(migrations: Iterable[Migration]) -> list[Step]:
    """Return the steps of migrations, which are given oldest first.

    Raises:
        ValueError: one declares no known `STEP`, or a wrong `WORKS_WITH`; the message names it.
    """
    found: list[Step] = []
    works_with = ""
    for each in migrations:
        kind = getattr(each, "STEP", None)
        oldest = getattr(each, "WORKS_WITH", None)
        if kind is None and not any(step.is_declared for step in found):
            works_with = each.revision
        elif kind == CONTRACT:
            if oldest not in [step.revision for step in found] or number_of(oldest) < number_of(works_with):
                raise ValueError(f"{each.revision}: WORKS_WITH must be a revision from {works_with} to the one before")
            works_with = str(oldest)
        elif kind != EXPAND or oldest is not None:
            raise ValueError(f"{each.revision}: STEP must be {EXPAND!r}, or {CONTRACT!r} with WORKS_WITH")
        found.append(Step(each.revision, kind is not None, kind == CONTRACT, works_with))
    return found


def needed(steps: Sequence[Step]) -> str:
    """Return the oldest revision with which the code works that has these steps."""
    return [step.revision for step in steps if not step.contracts][-1]


def pending(steps: Sequence[Step], current: str, *, contract: bool) -> list[Step]:
    """Return the steps to run from a revision: all, or those before the first that must be asked for."""
    following = [step for step in steps if number_of(step.revision) > number_of(current)]
    if not contract:
        for index, step in enumerate(following):
            if step.contracts:
                return following[:index]
    return following
