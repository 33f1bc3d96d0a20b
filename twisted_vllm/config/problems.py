"""The problems of a configuration, reported together, each with its place and without values."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

import attrs

T = TypeVar("T")

#: the prefix of a value that names an environment variable, as in LiteLLM's files
REFERENCE = "os.environ/"
#: what follows a variable's name in that of the variable that names a file with its value, as in Docker's own images
FILE_SUFFIX = "_FILE"
#: bytes of such a file; a secret has fewer
_MAX_FILE = 65_536

#: a name that may be shown unchanged: the form of setting names
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
#: the prefix of keys of OpenAI, LiteLLM and this gateway: never shown, even in place of a name
_KEY_PREFIX = re.compile(r"sk[-_]", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_INDEX = re.compile(r"\[[0-9]+\]")


@attrs.frozen
class Problem:
    """One error in the configuration.

    Attributes:
        path: its place: ``model_list[1].litellm_params.api_base``, the name of a variable or a file, or empty.
        message: what is wrong and, in parentheses, what to do.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return located(self.path, self.message)


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        problems: all problems, in the order of the settings.
        warnings: what the rest of the configuration would be warned of.
    """

    def __init__(self, problems: Iterable[Problem], warnings: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class Rejected(Exception):
    """A value is not valid at its place.

    Attributes:
        message: what is wrong with it; ``None`` if the report already has the problem.
    """

    def __init__(self, message: str | None) -> None:
        super().__init__(message)
        self.message = message


class EnvironmentText(str):
    """A value from the environment: always text, whatever type its setting has."""

    __slots__ = ()


class Report:
    """The problems and warnings found while loading."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._warnings: dict[tuple[str, str], tuple[str, int]] = {}

    def refuse(self, path: str, message: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(path, message))

    def warn(self, path: str, message: str) -> None:
        """Add a warning; the same one for further items of a list is only counted."""
        same = (_INDEX.sub("[]", path), message)
        first, count = self._warnings.get(same, (path, 0))
        self._warnings[same] = (first, count + 1)

    def refused_below(self, *paths: str) -> bool:
        """Return whether there is a problem at or below one of the paths."""
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
    """The place of a value in the configuration.

    Attributes:
        path: its path of names and indexes.
        report: collects problems and warnings.
        environ: the variables for ``os.environ/NAME``.
    """

    path: str
    report: Report
    environ: Mapping[str, str]

    def key(self, name: object) -> Place:
        """Return the place of a setting in this mapping."""
        return self.at(f"{self.path}.{shown(name)}" if self.path else shown(name))

    def item(self, index: int) -> Place:
        """Return the place of an item of this list."""
        return self.at(f"{self.path}[{index}]")

    def at(self, path: str) -> Place:
        """Return another place, with the same report and environment."""
        return Place(path, self.report, self.environ)

    def refuse(self, message: str) -> None:
        """Add a problem at this place."""
        self.report.refuse(self.path, message)

    def warn(self, message: str) -> None:
        """Add a warning at this place."""
        self.report.warn(self.path, message)

    def note(self, rejected: Rejected) -> None:
        """Add the problem of a rejected value, unless the report already has it."""
        if rejected.message is not None:
            self.refuse(rejected.message)

    def resolve(self, value: object) -> object:
        """Return the value of ``os.environ/NAME``, or the value itself.

        Raises:
            Rejected: the variable is not set.
        """
        if not isinstance(value, str) or isinstance(value, EnvironmentText) or not value.startswith(REFERENCE):
            return value
        name = value.removeprefix(REFERENCE)
        if not _VARIABLE.fullmatch(name):
            raise Rejected(f"does not name a variable of the environment (write {REFERENCE}NAME)")
        found = variable(self.environ, name)
        if not found:
            raise Rejected(f"the environment variable {name} is not set, or empty (set it, or write the value here)")
        return EnvironmentText(found)

    def check(self, check: Callable[[object, Place], T], value: object) -> T:
        """Resolve a value and check it.

        Raises:
            Rejected: it is not valid here.
        """
        return check(self.resolve(value), self)

    def attempt(self, check: Callable[[object, Place], T], value: object) -> T | None:
        """Resolve a value and check it; if it is rejected, report that and return ``None``."""
        try:
            return self.check(check, value)
        except Rejected as error:
            self.note(error)
            return None


def variable(environ: Mapping[str, str], name: str) -> str:
    """Return the value of a variable, or what stands in the file that ``NAME_FILE`` names; empty if neither is set.

    Container engines mount secrets as files: what stands in the environment is seen by all who may inspect a container.

    Raises:
        Rejected: the file cannot be read, is empty, or both variables are set.
    """
    value, path = environ.get(name, ""), environ.get(name + FILE_SUFFIX, "")
    if not path:
        return value
    by_file = f"the file that {name}{FILE_SUFFIX} names"
    if value:
        raise Rejected(f"is set, and so is {name}{FILE_SUFFIX} (set one of them)")
    if not os.path.isabs(path):
        raise Rejected(f"{by_file} must have a path that begins with /")
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE + 1).decode()
    except OSError as error:
        raise Rejected(f"{by_file} cannot be read: {error.strerror} ({path}: check its path and permissions)") from None
    except ValueError:
        raise Rejected(f"{by_file} is not UTF-8 text ({path})") from None
    if len(text) > _MAX_FILE:
        raise Rejected(f"{by_file} is too large for a value ({path}: more than {_MAX_FILE} bytes)")
    # editors and echo end a file with a newline
    found = text.rstrip("\r\n")
    if not found:
        raise Rejected(f"{by_file} is empty ({path})")
    return found


def located(path: str, message: str) -> str:
    """Return one line: the path, if there is one, and the message."""
    return f"{path}: {message}" if path else message


def shown(name: object) -> str:
    """Return a name from the file for a message.

    A value in the place of a name (``{api_key:sk-1}`` is one long name) is cut off.
    """
    if not isinstance(name, str):
        return "…"
    found = _PLAIN_NAME.match(name)
    if found is None or _KEY_PREFIX.match(name):
        return "…"
    return name if found.end() == len(name) else found.group() + "…"


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the most similar known name, if any; case, ``-`` and ``_`` are ignored."""
    if not isinstance(name, str):
        return None
    folded = {_fold(candidate): candidate for candidate in known}
    # Names are short; comparing a long text would be slow.
    close = get_close_matches(_fold(name[:80]), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or nothing."""
    found = nearest(name, known)
    return f"; did you mean '{found}'?" if found else ""


def _fold(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
