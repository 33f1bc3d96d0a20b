"""What is wrong with a configuration, all of it at once, without ever quoting a value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

import attrs

#: a name that may be shown as it stands: what settings are called
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
#: how the keys of OpenAI, LiteLLM and this gateway begin: never shown, not even where a name was expected
_KEY_PREFIX = re.compile(r"sk[-_]", re.IGNORECASE)


@attrs.frozen
class Problem:
    """One thing that keeps the configuration from being used.

    Attributes:
        path: where it stands: ``model_list[1].litellm_params.api_base``, the name of a variable or a file, or empty.
        message: what is wrong and, in parentheses, what to do.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return located(self.path, self.message)


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        problems: everything that is wrong, in the order of the settings.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def located(path: str, message: str) -> str:
    """Return one line: the path, where there is one, and the message."""
    return f"{path}: {message}" if path else message


def shown(name: object) -> str:
    """Return a name from the file as a message may show it.

    A value that slipped into the place of a name (``{api_key:sk-1}`` is one long name) is cut off.
    """
    if not isinstance(name, str):
        return "…"
    found = _PLAIN_NAME.match(name)
    if found is None or _KEY_PREFIX.match(name):
        return "…"
    return name if found.end() == len(name) else found.group() + "…"


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like this one, if any is: case, ``-`` and ``_`` do not count."""
    if not isinstance(name, str):
        return None
    folded = {_fold(candidate): candidate for candidate in known}
    # Names are short; a long text would make the comparison slow.
    close = get_close_matches(_fold(name[:80]), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or nothing."""
    found = nearest(name, known)
    return f"; did you mean '{found}'?" if found else ""


def _fold(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
