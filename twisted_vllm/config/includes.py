"""Other files that a configuration names in ``include``, as in LiteLLM: read as if their settings stood here."""

from __future__ import annotations

import os
from typing import Any

from twisted_vllm.config.checks import kind_of
from twisted_vllm.config.origins import FileLines
from twisted_vllm.config.problems import ConfigError, Problem, shown
from twisted_vllm.config.sources import read

#: the setting that names the files
INCLUDE = "include"

#: files of one configuration; more are a mistake
MAX_FILES = 100


def read_with_includes(file: str, lines: FileLines | None = None) -> dict[Any, Any]:
    """Read a configuration file and all files that it includes, those of included files too.

    A name is looked up beside the file that has it, or else beside the first file. Lists are joined in the order of
    the files. Anything else may stand in one of the files alone: LiteLLM takes the last one whole, and forgets the
    settings of the others.

    Args:
        file: the first file.
        lines: takes the lines of all settings.

    Raises:
        ConfigError: a file cannot be read, or two files set the same.
    """
    found: dict[Any, Any] = {}
    first_at: dict[Any, str] = {}
    waiting, seen = [file], {os.path.realpath(file)}
    for at in waiting:
        content = read(at, lines)
        for name in _names(content, at):
            path = _beside(name, at, file)
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                waiting.append(path)
        if len(waiting) > MAX_FILES:
            raise _refusal(INCLUDE, f"names more than {MAX_FILES} files (put them together)")
        for name, value in content.items():
            if name == INCLUDE:
                continue
            known = found.get(name)
            if known is None:
                found[name] = value
                first_at[name] = at
            elif isinstance(known, list) and isinstance(value, list):
                found[name] = [*known, *value]
            elif value is not None:
                raise _refusal(
                    shown(name), f"stands in {first_at[name]} and in {at}, which it includes (keep it in one of them)"
                )
    return found


def _names(content: dict[Any, Any], at: str) -> list[str]:
    names = content.get(INCLUDE)
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise _refusal(INCLUDE, f"must be a list of file names in {at}, not {kind_of(names)}")
    return names


def _beside(name: str, at: str, first: str) -> str:
    beside = os.path.join(os.path.dirname(at), name)
    if not os.path.exists(beside):
        beside_first = os.path.join(os.path.dirname(first), name)
        if os.path.exists(beside_first):
            return beside_first
    return beside


def _refusal(path: str, message: str) -> ConfigError:
    return ConfigError([Problem(path, message)])
