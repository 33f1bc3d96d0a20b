"""Writes ``config/example.yaml`` and ``docs/configuration.md`` from the declarations of the settings.

``make reference``, or ``python -m twisted_vllm.config.reference`` at the root of the repository, writes both. With
``--check`` it writes nothing, and exits with 1 if a file is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted_vllm.config import litellm, restricting
from twisted_vllm.config.checks import Checker
from twisted_vllm.config.declaration import OWN_BLOCK, Inherited, Items, Required, Section, Setting, yaml_of
from twisted_vllm.config.load import DOCUMENT, variables

#: line width of the example
WIDTH = 120

_EXAMPLE_HEAD = """\
# A configuration of twisted_vllm with every setting that there is. Written by `make reference`: do not edit it here.
#
#   twistd -n vllm-passthrough --config example.yaml --check     says what it would do, and stops
#   twistd -n vllm-passthrough --config example.yaml             does it
#
# The layout is LiteLLM's: model_list, general_settings, litellm_settings, router_settings, environment_variables.
# What only this gateway has stands below passthrough. Every value shown is the default, unless it is marked as an
# example; a setting that is left out has its default. docs/configuration.md lists types and bounds as well.
# A misspelt setting keeps the gateway from starting. A LiteLLM setting that is not implemented causes one warning; one
# that restricts somebody keeps the gateway from starting.
#
# The command line wins over this file, and this file over the environment. The variables, the first name winning:
{variables}
# An empty variable counts as unset. os.environ/NAME as the whole of a value stands for the variable NAME, which
# must then be set: it keeps secrets out of this file. This file needs LITELLM_MASTER_KEY and HOSTED_VLLM_API_KEY.
# In place of each variable NAME, NAME_FILE may name a file that holds the value.
"""

_REFERENCE_HEAD = """\
# Configuration

<!-- Written by `make reference` from the declarations in twisted_vllm/config: do not edit it here. -->

`twistd -n vllm-passthrough --config FILE` reads a YAML file in LiteLLM's layout, and what only this gateway has below
`passthrough`. [config/example.yaml](../config/example.yaml) is such a file with every setting.
`--check` prints what the configuration would do, or everything that is wrong with it, and starts nothing.

- The command line wins over the file, the file over the environment.
- A setting that is left out has its default.
- A misspelt setting keeps the gateway from starting; the message names the nearest setting.
- A LiteLLM setting that is not implemented causes one warning; these are listed [at the end](#not-implemented).
  One that restricts somebody [is refused](#refused): the gateway does not start.
- "LiteLLM's name" is the setting of LiteLLM's file that means the same: at the same place there, or at the place given.
- `os.environ/NAME` as the whole of a value stands for the environment variable `NAME`, which must then be set.
- A running gateway takes new values without a restart ([reload](operations.md#reload)), except those whose row says
  that a restart is needed.
"""

_VARIABLES_HEAD = """\
## Environment variables

Of the variables of one setting, the first that is set wins. An empty one counts as unset.

In place of each variable `NAME`, these and those of `os.environ/NAME`, `NAME_FILE` may name a file that holds the
value, such as a secret that a container engine mounts. The path begins with `/`; a newline at the end of the file does
not count; setting both is refused. A reload reads the file again.
"""

_REFUSED_HEAD = """\
## Refused

These settings of LiteLLM limit, refuse, authenticate, isolate, filter or budget, and the gateway does not implement
them. With one of them it does not start, because it would let through what the setting is to stop.
`null`, `false` and empty values restrict nothing.
"""

_REFUSED = (
    ("", restricting.BLOCKS),
    ("general_settings", restricting.GENERAL_SETTINGS),
    ("litellm_settings", restricting.LITELLM_SETTINGS),
    ("router_settings", restricting.ROUTER_SETTINGS),
    ("model_list[].litellm_params", restricting.ENTRY_PARAMS),
    ("model_list[].model_info", restricting.MODEL_INFO),
)

_IGNORED_HEAD = """\
## Not implemented

The gateway knows these settings of LiteLLM, ignores them, and warns of each that is set.
"""

_IGNORED = (
    ("At the top of the file", litellm.BLOCKS),
    ("In `general_settings`", litellm.GENERAL_SETTINGS),
    ("In `litellm_settings`", litellm.LITELLM_SETTINGS),
    ("In `router_settings`", litellm.ROUTER_SETTINGS),
    ("In an entry of `model_list`", litellm.ENTRY),
    ("In `litellm_params`", litellm.ENTRY_PARAMS),
    ("In `model_info`", litellm.MODEL_INFO),
)


def example(document: Section[Any] = DOCUMENT) -> str:
    """Return the text of ``config/example.yaml``."""
    blocks = ["\n".join(_example_of(each, "")) for each in document.settings]
    return "\n\n".join([_EXAMPLE_HEAD.format(variables=_example_variables()).rstrip(), *blocks]) + "\n"


def _example_variables() -> str:
    rows = []
    for each in variables():
        own, usual = each.environment[0], each.environment[-1]
        rows.append((own, usual if usual != own else "", each.path))
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"#   {own:{first}}  {usual:{second}}  {path}" for own, usual, path in rows)


def _example_of(each: Setting, margin: str) -> list[str]:
    """Return the lines of a setting: its description, its value with a remark, and the settings in it."""
    value, inner = each.example, list[str]()
    if value:
        pass
    elif isinstance(each.check, Section):
        inner = _example_of_all(each.check, f"{margin}  ")
        value = "" if inner else "{}"
    elif each.items is not None:
        inner = _example_of_items(each.items, f"{margin}  ")
    else:
        value = _default(each)
    line = f"{margin}{each.name}: {value}".rstrip()
    doc, remark = each.doc, _remark(each)
    if len(f"{line}  # {remark}") > WIDTH:
        doc, remark = f"{doc} {remark}.", ""
    start = f"{margin}# "
    comment = textwrap.wrap(
        doc, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False, break_long_words=False
    )
    return [*comment, f"{line}  # {remark}" if remark else line, *inner]


def _example_of_all(section: Section[Any], margin: str) -> list[str]:
    lines: list[str] = []
    for each in section.settings:
        if lines and margin == "  ":
            lines.append("")
        lines += _example_of(each, margin)
    return lines


def _example_of_items(items: Items, margin: str) -> list[str]:
    more = textwrap.indent(items.more, margin).splitlines()
    if items.key:
        return [f"{margin}{items.key}:  # example", *_values_alone(items.section, f"{margin}  "), *more]
    lines = _example_of_all(items.section, f"{margin}  ")
    first = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
    lines[first] = f"{margin}- {lines[first].lstrip()}"
    return [*(line.removeprefix("  ") for line in lines[:first]), *lines[first:], *more]


def _values_alone(section: Section[Any], margin: str) -> Iterator[str]:
    """Yield settings without comments: what differs for one server is described with the limits and timeouts."""
    for each in section.settings:
        if isinstance(each.check, Section):
            yield f"{margin}{each.name}:"
            yield from _values_alone(each.check, f"{margin}  ")
        else:
            yield f"{margin}{each.name}: {each.example}"


def _default(each: Setting) -> str:
    """Return the default in the file's form; empty without a default of its own."""
    return "" if isinstance(each.default, (Required, Inherited)) else yaml_of(each.default)


def _remark(each: Setting) -> str:
    """Return the comment after the value: unit, choices, and the meaning of null or no value."""
    if isinstance(each.check, Section) or each.items is not None:
        return ""
    said = [each.measure] if each.measure else []
    if each.check.kind == "choice":
        said.append(" or ".join(each.check.bounds.rsplit(", ", 1)))
    if isinstance(each.default, Required):
        said.append("example; required")
    elif each.example:
        said.append(f"example; left out: {each.check.null if each.default is None else _default(each)}")
    elif each.check.null:
        said.append(f"null: {each.check.null}" if said or each.default is not None else each.check.null)
    return "; ".join(said)


def reference(document: Section[Any] = DOCUMENT) -> str:
    """Return the text of ``docs/configuration.md``."""
    rows = [{"Setting": _code(each.path), "Variables": _codes(each.environment)} for each in variables()]
    parts = [_REFERENCE_HEAD, _VARIABLES_HEAD, _table(rows)]
    parts += ["## The blocks of the file\n", _table([_row(each, "") for each in document.settings])]
    for path, doc, section in sections(document):
        parts += [f"## {_code(path)}\n", f"{_escaped(doc)}\n", _table([_row(each, path) for each in section.settings])]
    parts += [_REFUSED_HEAD, _table(list(_refused()))]
    parts.append(_IGNORED_HEAD)
    parts += [f"{place}: {_codes(sorted(names))}.\n" for place, names in _IGNORED]
    return "\n".join(parts).rstrip() + "\n"


def _refused() -> Iterator[dict[str, str]]:
    """Yield the row of each setting that keeps the gateway from starting."""
    for block, restrictions in _REFUSED:
        for name in sorted(restrictions):
            restriction = restrictions[name]
            yield {
                "Setting": _code(f"{block}.{name}" if block else name),
                "What it would do": restriction.effect,
                "Refused with": restriction.when,
                "Instead": _escaped(restriction.instead),
            }


def sections(section: Section[Any] = DOCUMENT, path: str = "") -> Iterator[tuple[str, str, Section[Any]]]:
    """Yield each mapping with settings that the file may hold: its path, its description and its checker."""
    for each in section.settings:
        found = _held(each, f"{path}.{each.name}" if path else each.name)
        if found is not None and found[1].settings:
            yield found[0], each.doc, found[1]
            yield from sections(found[1], found[0])


def _held(each: Setting, path: str) -> tuple[str, Section[Any]] | None:
    """Return path and checker of the mapping that a setting, or each of its items, consists of; or None."""
    if isinstance(each.check, Section):
        return path, each.check
    return None if each.items is None else (f"{path}{each.items.path}", each.items.section)


def _row(each: Setting, path: str) -> dict[str, str]:
    """Return the cells of a setting of the mapping at `path`, by the titles of their columns."""
    here = f"{path}.{each.name}" if path else each.name
    name, doc = _code(each.name), _escaped(each.doc)
    held = _held(each, here)
    if held is not None and held[1].settings:
        # a mapping has its own table, below its description
        name, doc = f"[{name}](#{re.sub(r'[^a-z0-9_]', '', held[0].lower())})", ""
    null = each.null
    return {
        "Setting": name,
        "Type": each.kind + (" or null" if null else ""),
        "Default": _default_cell(each),
        "Bounds": _escaped(each.check.bounds) if isinstance(each.check, Checker) else "",
        "Unit": each.measure,
        "Description": doc + (f" `null`: {_escaped(null)}." if null else ""),
        "Environment": _codes(each.environment),
        "Restart": "" if each.reload else "needed",
        "LiteLLM's name": _litellm(each, here),
    }


def _default_cell(each: Setting) -> str:
    if isinstance(each.default, Required):
        return "required"
    if isinstance(each.default, Inherited):
        return f"that of {_code(each.default.path)}"
    return "" if isinstance(each.check, Section) else _code(_default(each))


def _litellm(each: Setting, path: str) -> str:
    if each.litellm:
        return _code(each.litellm)
    return "" if path.startswith(OWN_BLOCK) else "the same"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table, without the columns that are empty in all rows."""
    titles = [title for title in rows[0] if any(row[title] for row in rows)]
    lines = [titles, ["---"] * len(titles), *([row[title] for title in titles] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _code(text: str) -> str:
    return f"`{text}`"


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(map(_code, texts))


def _escaped(text: str) -> str:
    return re.sub(r"([|*<])", r"\\\1", text)


#: the files, relative to the repository's root, and the functions that generate them
FILES: Mapping[str, Callable[[], str]] = {"config/example.yaml": example, "docs/configuration.md": reference}


def main(arguments: Sequence[str]) -> int:
    """Write the files, or check them.

    Args:
        arguments: those of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m twisted_vllm.config.reference",
        description="Writes config/example.yaml and docs/configuration.md from the declarations of the settings.",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and end with 1 where a file is out of date"
    )
    check = parser.parse_args(arguments).check
    if missing := [name for name in FILES if not Path(name).parent.is_dir()]:
        parser.error(f"there is no folder for {missing[0]} here: start it at the root of the repository")
    stale = [name for name, text in FILES.items() if _content(Path(name)) != text()]
    for name in stale:
        if check:
            print(f"{name} is out of date: run make reference", file=sys.stderr)
        else:
            Path(name).write_text(FILES[name](), "utf-8")
            print(f"wrote {name}")
    return 1 if check and stale else 0


def _content(file: Path) -> str | None:
    return file.read_text("utf-8") if file.exists() else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
