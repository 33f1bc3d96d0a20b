"""Reads the configuration file into plain values, and the environment.

The file is strict YAML; messages name the line of an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError
from yaml.resolver import Resolver

from twisted_vllm.config.checks import checker, kind_of
from twisted_vllm.config.declaration import Setting
from twisted_vllm.config.origins import FileLines
from twisted_vllm.config.problems import (
    FILE_SUFFIX,
    ConfigError,
    EnvironmentText,
    Place,
    Problem,
    Rejected,
    Report,
    shown,
    suggestion,
    variable,
)

#: the prefix of the gateway's own variables
PREFIX = "VLLM_PASSTHROUGH_"
#: those of the commands that ask a running gateway
_OF_CLIENTS = (f"{PREFIX}URL", f"{PREFIX}KEY")
#: the block of the file that is laid over the environment
BLOCK = "environment_variables"

_TIMESTAMP = "tag:yaml.org,2002:timestamp"
#: the quoted parts of PyYAML's messages: pieces of the file, and the names of its tokens
_QUOTED = re.compile(r"""'(.*?)'|"(.*?)\"""", re.DOTALL)
_TOKEN = re.compile(r".?|<[a-z ]+>", re.DOTALL)


def read(file: str, lines: FileLines | None = None) -> dict[Any, Any]:
    """Read a configuration file; an empty one has no settings.

    Args:
        file: its name.
        lines: takes the lines of its settings.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is not a mapping at the top.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise _refusal(file, f"cannot be read: {error.strerror} (check the path and its permissions)") from None
    except ValueError:
        raise _refusal("--config", "is not the name of a file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refusal(file, f"line {line}: is not UTF-8 text (save the file as UTF-8)") from None
    return parse(text, file, lines)


def parse(text: str, file: str, lines: FileLines | None = None) -> dict[Any, Any]:
    """Parse the text of a configuration file.

    Args:
        text: the text.
        file: its name, for messages.
        lines: takes the lines of its settings.

    Raises:
        ConfigError: it is not YAML, a name is repeated in a mapping, or the top is not a mapping.
    """
    try:
        found = _loaded(text, file, lines)
    except yaml.MarkedYAMLError as error:
        raise _refusal(file, _explain(error)) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _refusal(file, f"line {line}: holds a character that YAML does not allow (remove it)") from None
    except RecursionError:
        raise _refusal(file, "is nested too deeply") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _refusal(file, "must be a mapping of settings (such as 'general_settings:' with its settings below)")
    return found


def _loaded(text: str, file: str, lines: FileLines | None) -> Any:
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        found = None if node is None else loader.construct_document(node)
        if lines is not None:
            # last: merge keys (<<) are resolved by now
            lines.add(node, file)
        return found
    finally:
        loader.dispose()


def _refusal(file: str, message: str) -> ConfigError:
    return ConfigError([Problem(file, message)])


def _explain(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    if isinstance(error, _RepeatedName):
        return where + str(error.problem)
    # To YAML, an unquoted password that begins with * or ! is an alias or a tag, and appears in its message.
    what = _QUOTED.sub(_without_value, error.problem or error.context or "is not YAML")
    if "'\\t'" in (error.problem or ""):
        return f"{where}a tab (write spaces in its place)"
    return f"{where}{what} (check the indentation, and put values with special characters into quotes)"


def _without_value(quoted: re.Match[str]) -> str:
    content = quoted[1] if quoted[1] is not None else quoted[2]
    return quoted.group() if _TOKEN.fullmatch(content) else "…"


class _RepeatedName(ComposerError):
    """A name is repeated in a mapping."""


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses repeated names, leaves dates as text, and fails only with YAML's errors."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                message = f"{shown(key.value)} stands twice in one mapping, first in line {lines[name]} (keep one)"
                raise _RepeatedName(None, None, message, key.start_mark)
            lines[name] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            # An explicit tag on a value that does not fit: ``!!int x``.
            raise ConstructorError(None, None, "the value does not fit its type", node.start_mark) from error


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in Resolver.yaml_implicit_resolvers.items()
}


def overlay(environ: Mapping[str, str], block: object, report: Report) -> dict[str, str]:
    """Return the environment with the file's ``environment_variables`` laid over it; empty ones count as unset."""
    merged = dict(environ)
    place = Place(BLOCK, report, environ)
    if block is not None and not isinstance(block, dict):
        place.refuse(f"must be a mapping of names to values, not {kind_of(block)}")
    for name, value in block.items() if isinstance(block, dict) else ():
        here = place.key(name)
        found = here.attempt(_variable, value)
        if not isinstance(name, str) or not name:
            here.refuse("must have a name that is text (put it into quotes)")
        elif found:
            merged[name] = found
    return {name: value for name, value in merged.items() if value}


@checker("text or number")
def _variable(value: object, place: Place) -> str:
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        raise Rejected(f"must be text or a number, not {kind_of(value)}")
    return str(value)


def warn_of_misspelt(environ: Mapping[str, str], settings: Iterable[Setting], report: Report) -> None:
    """Warn of each variable with the gateway's prefix that sets none of these settings."""
    declared = [name for each in settings for name in each.environment if name.startswith(PREFIX)]
    known = [*declared, *(name + FILE_SUFFIX for name in declared), *_OF_CLIENTS]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            report.warn(shown(name), f"not a known variable: ignored{suggestion(name, known)}")


def from_environment(setting: Setting, root: Place) -> Any:
    """Return the value of a setting from the environment; ``None`` if it is not set or is refused."""
    name = variable_of(setting, root.environ)
    if name is None:
        return None
    place = root.at(name.removesuffix(FILE_SUFFIX))
    try:
        text = variable(root.environ, place.path)
    except Rejected as error:
        place.note(error)
        return None
    return place.attempt(setting.check, EnvironmentText(text))


def variable_of(setting: Setting, environ: Mapping[str, str]) -> str | None:
    """Return the variable that sets a setting, ``NAME`` or ``NAME_FILE``; ``None`` if none is set."""
    return next(
        (each for name in setting.environment for each in (name, name + FILE_SUFFIX) if environ.get(each)), None
    )
