"""Where the settings in effect were written: file and line, variable, or option of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

import attrs
import yaml

#: the most names and items of which the lines are kept: aliases make a small file say the same very often
MOST_NAMES, MOST_ITEMS = 20_000, 100_000

#: how deep settings are below the top of a file; what is below is part of a value
_DEPTH = 6

#: the longest name whose line is kept
_LONGEST = 200


class Kind(Enum):
    """Where a value comes from."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"
    DATABASE = "database"
    QUICKSTART = "quickstart"


@attrs.frozen
class Origin:
    """Where a value comes from.

    Attributes:
        kind: the kind of place.
        file: the file, as it was named.
        line: the line in it, from 1; 0 if it is not known.
        name: the variable that holds the value, or the option.
    """

    kind: Kind = Kind.DEFAULT
    file: str = ""
    line: int = 0
    name: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ", ".join(part for part in (place, self.name) if part) or self.kind.value


DEFAULT = Origin()
DATABASE = Origin(Kind.DATABASE)


@attrs.frozen
class Origins:
    """The places of the settings in effect that have not their defaults.

    Attributes:
        settings: by the path of the setting, or of the mapping or list that it is in.
        models: of the entries of ``model_list``, by their ids.
        variables: the names of variables that the file sets.
    """

    settings: Mapping[str, Origin] = attrs.field(factory=dict)
    models: Mapping[str, Origin] = attrs.field(factory=dict)
    variables: Mapping[str, Origin] = attrs.field(factory=dict)

    def of(self, path: str, *others: str) -> Origin:
        """Return the place of a setting; `others` are paths that mean the same and count less."""
        for each in (path, *others):
            if (found := self.settings.get(each)) is not None:
                return found
        return DEFAULT

    def with_settings(self, settings: Mapping[str, Origin]) -> Origins:
        """Return these, with other places of some settings."""
        return attrs.evolve(self, settings={**self.settings, **settings})

    def with_former(self, former: Origins, paths: Iterable[str]) -> Origins:
        """Return these, but with the former places of settings that keep their values until a restart."""
        kept = {path: former.settings.get(path, DEFAULT) for path in paths}
        return self.with_settings(kept) if kept else self


class FileLines:
    """The lines of names and of items of lists, while files are read.

    Attributes:
        names: the place of each name, by its path.
        items: the places of the items of each list, by its path.
    """

    def __init__(self) -> None:
        """Nothing was read."""
        self.names: dict[str, Origin] = {}
        self.items: dict[str, list[Origin]] = {}
        self._left = MOST_ITEMS

    def add(self, node: yaml.Node | None, file: str) -> None:
        """Add the lines of a file, from its node at the top."""
        if isinstance(node, yaml.MappingNode):
            self._add(node, "", file, _DEPTH)

    def _add(self, mapping: yaml.MappingNode, path: str, file: str, depth: int) -> None:
        for key, value in mapping.value:
            if len(self.names) >= MOST_NAMES:
                return
            if not isinstance(key, yaml.ScalarNode) or len(key.value) > _LONGEST:
                continue
            here = f"{path}.{key.value}" if path else key.value
            self.names[here] = Origin(Kind.FILE, file, key.start_mark.line + 1)
            if isinstance(value, yaml.MappingNode) and depth > 1:
                self._add(value, here, file, depth - 1)
            elif isinstance(value, yaml.SequenceNode):
                lines = [Origin(Kind.FILE, file, each.start_mark.line + 1) for each in value.value[: self._left]]
                self._left -= len(lines)
                self.items.setdefault(here, []).extend(lines)
