"""What the environment says, and which of its variables are the gateway's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from twisted_vllm.config.place import EnvironmentText, Place, Rejected, Report
from twisted_vllm.config.problems import shown, suggestion
from twisted_vllm.config.shape import Checker, kind

T = TypeVar("T")

PREFIX = "VLLM_PASSTHROUGH_"
BLOCK = "environment_variables"

#: the variables of each setting; the first that is set and not empty wins
VARIABLES: Mapping[str, tuple[str, ...]] = {
    **{
        setting: (PREFIX + short, PREFIX + name, name) if short != name else (PREFIX + short, name)
        for setting, short, name in (
            ("master_key", "MASTER_KEY", "LITELLM_MASTER_KEY"),
            ("database_url", "DATABASE_URL", "DATABASE_URL"),
            ("api_base", "API_BASE", "HOSTED_VLLM_API_BASE"),
            ("api_key", "API_KEY", "HOSTED_VLLM_API_KEY"),
        )
    },
    # a REDIS_URL that stands in the environment may be meant for another program
    "redis_url": (PREFIX + "REDIS_URL",),
}


def overlay(environ: Mapping[str, str], block: object, report: Report) -> dict[str, str]:
    """Return the environment with the file's ``environment_variables`` laid over it; empty ones count as unset."""
    merged = dict(environ)
    place = Place(BLOCK, report, environ)
    if block is not None and not isinstance(block, dict):
        place.refuse(f"must be a mapping of names to values, not {kind(block)}")
    for name, value in block.items() if isinstance(block, dict) else ():
        here = place.key(name)
        found = here.attempt(_value, value)
        if not isinstance(name, str) or not name:
            here.refuse("must have a name that is text (put it into quotes)")
        elif found:
            merged[name] = found
    return {name: value for name, value in merged.items() if value}


def warn_of_misspelt(environ: Mapping[str, str], report: Report) -> None:
    """Warn of each variable with the gateway's prefix that is not one of its own."""
    known = [name for names in VARIABLES.values() for name in names if name.startswith(PREFIX)]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            report.warn(shown(name), f"not a known variable: ignored{suggestion(name, known)}")


def from_environment(setting: str, checker: Checker[T], root: Place) -> T | None:
    """Return a setting that the environment makes, ``None`` where it does not."""
    for name in VARIABLES[setting]:
        value = root.environ.get(name)
        if value:
            return root.at(name).attempt(checker, EnvironmentText(value))
    return None


def _value(value: object, place: Place) -> str:
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        raise Rejected(f"must be text or a number, not {kind(value)}")
    return str(value)
