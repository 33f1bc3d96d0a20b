"""Where a value stands, and the report to which everything found there goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import attrs

from twisted_vllm.config.problems import Problem, located, shown

if TYPE_CHECKING:
    from twisted_vllm.config.shape import Checker

T = TypeVar("T")

#: how LiteLLM's files name a variable of the environment, as the whole of a value
REFERENCE = "os.environ/"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_INDEX = re.compile(r"\[[0-9]+\]")


class Rejected(Exception):
    """A value that means nothing where it stands.

    Attributes:
        message: what is wrong with it; ``None`` where that is in the report already.
    """

    def __init__(self, message: str | None) -> None:
        super().__init__(message)
        self.message = message


class EnvironmentText(str):
    """A value from the environment: always text there, whatever it stands for."""

    __slots__ = ()


class Report:
    """What was found while loading: problems, and warnings with the same one only once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._warnings: dict[tuple[str, str], tuple[str, int]] = {}

    def refuse(self, path: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(path, message))

    def warn(self, path: str, message: str) -> None:
        """Note a warning; the same setting in further entries of a list only counts."""
        same = (_INDEX.sub("[]", path), message)
        first, count = self._warnings.get(same, (path, 0))
        self._warnings[same] = (first, count + 1)

    def refused_below(self, *paths: str) -> bool:
        """Whether something at or below one of the paths was refused."""
        refused = [problem.path for problem in self.problems]
        return any(at == path or at.startswith((f"{path}.", f"{path}[")) for at in refused for path in paths)

    def warnings(self) -> tuple[str, ...]:
        """Return one line for each warning."""
        return tuple(
            located(first, message + (f" (and in {count - 1} more)" if count > 1 else ""))
            for (_, message), (first, count) in self._warnings.items()
        )


@attrs.frozen
class Place:
    """Where a value stands.

    Attributes:
        path: the names and indices that lead to it.
        report: where problems and warnings go.
        environ: what ``os.environ/NAME`` refers to.
    """

    path: str
    report: Report
    environ: Mapping[str, str]

    def key(self, name: object) -> Place:
        """Return the place of a setting in this mapping."""
        return self.at(f"{self.path}.{shown(name)}" if self.path else shown(name))

    def item(self, index: int) -> Place:
        """Return the place of a piece of this list."""
        return self.at(f"{self.path}[{index}]")

    def at(self, path: str) -> Place:
        """Return another place, with the same report and environment."""
        return attrs.evolve(self, path=path)

    def refuse(self, message: str) -> None:
        """Note a problem here."""
        self.report.refuse(self.path, message)

    def warn(self, message: str) -> None:
        """Note a warning here."""
        self.report.warn(self.path, message)

    def note(self, rejected: Rejected) -> None:
        """Note why a value was rejected, unless that was done."""
        if rejected.message is not None:
            self.refuse(rejected.message)

    def resolve(self, value: object) -> object:
        """Return the value that ``os.environ/NAME`` stands for, or the value itself.

        Raises:
            Rejected: the variable is not set.
        """
        if not isinstance(value, str) or isinstance(value, EnvironmentText) or not value.startswith(REFERENCE):
            return value
        name = value.removeprefix(REFERENCE)
        if not _VARIABLE.fullmatch(name):
            raise Rejected(f"does not name a variable of the environment (write {REFERENCE}NAME)")
        found = self.environ.get(name, "")
        if not found:
            raise Rejected(f"the environment variable {name} is not set, or empty (set it, or write the value here)")
        return EnvironmentText(found)

    def check(self, checker: Checker[T], value: object) -> T:
        """Resolve a value and check it.

        Raises:
            Rejected: it means nothing here.
        """
        return checker(self.resolve(value), self)

    def attempt(self, checker: Checker[T], value: object) -> T | None:
        """Resolve a value and check it; ``None`` where it was rejected, which is then in the report."""
        try:
            return self.check(checker, value)
        except Rejected as error:
            self.note(error)
            return None
