"""Declares each setting once, as an attribute of the frozen class that holds its value.

    @attrs.frozen
    class Limits:
        max_body_bytes: int = setting(1_073_741_824, whole(), "A request's body.", unit="bytes")

`section` makes the checker of a mapping from such a class. ``--check``, ``--help``, ``config/example.yaml``
and ``docs/configuration.md`` read the same declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, TypeVar

import attrs
import yaml

from twisted_vllm.config import litellm
from twisted_vllm.config.checks import Checker, kind_of
from twisted_vllm.config.problems import Place, Rejected, nearest, suggestion
from twisted_vllm.config.restricting import NONE, Restrictions, asks_for_something
from twisted_vllm.config.secret import Secret

T = TypeVar("T")
A = TypeVar("A", bound=attrs.AttrsInstance)

#: the mapping of the file for settings that only this gateway has
OWN_BLOCK = "passthrough"

_METADATA = "setting"


@attrs.frozen
class Required:
    """Marks a setting that must be set, in place of a default.

    Attributes:
        hint: what to write, for the message if it is missing.
    """

    hint: str


@attrs.frozen
class Inherited:
    """Marks a setting that defaults to another setting's value.

    Attributes:
        path: the path of that setting.
    """

    path: str


@attrs.frozen
class Items:
    """The items of a setting that is a list or a mapping of sections.

    Attributes:
        section: the checker of one item.
        path: the suffix of an item's path in the reference: ``[]``, or ``.NAME`` in a mapping.
        key: the name of the item in the example, for a mapping.
        more: YAML text of further items for the example.
    """

    section: Section[Any]
    path: str
    key: str = ""
    more: str = ""


@attrs.frozen
class Setting:
    """The declaration of a setting.

    Attributes:
        default: the default value, or `Required` or `Inherited`.
        check: its checker; a `Section` if it is a mapping of further settings.
        doc: its description in plain text, for the example and the reference.
        name: its name in the file; empty if it is the attribute's.
        unit: the unit of a number, if the checker does not know it.
        example: YAML text that the example shows in place of the default.
        block: the top-level mapping that contains it; empty for the top level itself. Only for settings of the classes
            that represent the whole file; others are in the mapping of their class.
        environment: the variables that set it if the file does not; the first that is set and not empty wins.
        litellm: the path of the equivalent setting in LiteLLM's file, if it differs.
        per_server: YAML text of a value for one server, for the example; empty if it cannot differ per server.
        concerns: its subject, if it cannot differ per server: ``clients``.
        items: the items, if it is a list or a mapping of sections.
        reload: whether a running gateway takes a new value; if not, it needs a restart.
        attribute: the attribute that holds its value.
    """

    default: object
    check: Checker[Any] | Section[Any]
    doc: str
    name: str = ""
    unit: str = ""
    example: str = ""
    block: str = OWN_BLOCK
    environment: tuple[str, ...] = ()
    litellm: str = ""
    per_server: str = ""
    concerns: str = ""
    items: Items | None = None
    reload: bool = True
    attribute: str = ""

    @property
    def path(self) -> str:
        """The path in the file, for a setting in one of the blocks."""
        return f"{self.block}.{self.name}" if self.block else self.name

    @property
    def kind(self) -> str:
        """The kind of its value, such as ``whole number``."""
        return self.check.kind if isinstance(self.check, Checker) else "mapping"

    @property
    def measure(self) -> str:
        """The unit of its value; empty if it has none."""
        return self.unit or (self.check.unit if isinstance(self.check, Checker) else "")

    @property
    def null(self) -> str:
        """The meaning of null; empty if it may not be null."""
        return self.check.null if isinstance(self.check, Checker) else ""


def setting(
    default: T | Required,
    check: Checker[T] | Section[T],
    doc: str,
    *,
    name: str = "",
    unit: str = "",
    example: str = "",
    block: str = OWN_BLOCK,
    environment: tuple[str, ...] = (),
    litellm: str = "",
    per_server: str = "",
    concerns: str = "",
    items: Items | None = None,
    reload: bool = True,
) -> T:
    """Declare a setting as an attribute of a frozen class; the arguments are `Setting`'s attributes."""
    declared = Setting(
        default, check, doc, name, unit, example, block, environment, litellm, per_server, concerns, items, reload
    )
    written: Any = attrs.NOTHING if isinstance(default, Required) else default
    field: T = attrs.field(default=written, metadata={_METADATA: declared})
    return field


def settings_of(holder: type[attrs.AttrsInstance]) -> tuple[Setting, ...]:
    """Return the settings that a class declares, in order."""
    return tuple(
        attrs.evolve(declared, name=declared.name or field.name, attribute=field.name)
        for field in attrs.fields(holder)
        if (declared := field.metadata.get(_METADATA)) is not None
    )


#: how similar a misspelt name is where other names are free: LiteLLM's own differ by a word at least
_ALMOST = 0.93


class Unknown(Enum):
    """The treatment of a name that a section does not know."""

    #: the gateway does not start
    REFUSE = "refuse"
    #: a warning, or an error if it is close to a known name: a misspelt master key must not open the gateway
    WARN = "warn"
    #: ignored, with a warning if it is almost a known name
    ACCEPT = "accept"


@attrs.frozen
class Section(Generic[T]):
    """A checker for a mapping with known names; ``null`` means an empty one.

    Attributes:
        build: makes the result from the values, by attribute.
        settings: its settings.
        ignored: names that are known and not implemented: each causes one warning.
        restricting: names that are known and not implemented, and that restrict somebody: each is an error.
        hints: the messages for names that belong elsewhere.
        unknown: the treatment of all other names.
    """

    build: Callable[..., T]
    settings: tuple[Setting, ...]
    ignored: frozenset[str] = frozenset()
    restricting: Restrictions = NONE
    hints: Mapping[str, str] = attrs.field(factory=dict)
    unknown: Unknown = Unknown.REFUSE

    @property
    def names(self) -> list[str]:
        """The names of its settings."""
        return [each.name for each in self.settings]

    def __call__(self, value: object, place: Place, /) -> T:
        mapping = {} if value is None else value
        if not isinstance(mapping, dict):
            raise Rejected(f"must be a mapping, not {kind_of(value)}")
        known = {each.name: each for each in self.settings}
        found: dict[str, Any] = {}
        for name, content in mapping.items():
            if name in known:
                self._check(known[name], content, place.key(name), found)
            else:
                self._meet_unknown(name, content, place.key(name))
        for each in self.settings:
            if isinstance(each.default, Required) and each.name not in mapping:
                place.key(each.name).refuse(f"is missing ({each.default.hint})")
        if any(isinstance(each.default, Required) and each.attribute not in found for each in self.settings):
            raise Rejected(None)
        return self.build(**found)

    def _check(self, declared: Setting, content: object, place: Place, found: dict[str, Any]) -> None:
        try:
            found[declared.attribute] = place.check(declared.check, content)
        except Rejected as error:
            place.note(error)

    def _meet_unknown(self, name: object, content: object, place: Place) -> None:
        if name in self.ignored:
            # null sets nothing
            if content is not None:
                advice = litellm.ADVICE.get(str(name))
                place.warn("not implemented yet: ignored" + (f" ({advice})" if advice else ""))
            return
        if isinstance(name, str) and name in self.restricting:
            self._meet_restricting(name, content, place)
            return
        if self.unknown is Unknown.ACCEPT:
            if (close := nearest(name, self.names, cutoff=_ALMOST)) is not None:
                place.warn(f"not a known setting: ignored; did you mean '{close}'?")
            return
        close = nearest(name, [*self.hints, *self.names], cutoff=0.8)
        if close is not None and close in self.hints:
            spelling = "" if name == close else f"; did you mean '{close}'?"
            place.refuse(f"does not belong here ({self.hints[close]}){spelling}")
        elif close is not None or self.unknown is Unknown.REFUSE:
            place.refuse(f"is not a known setting{self._suggestion(name)}")
        else:
            place.warn(f"not a known setting: ignored{self._suggestion(name)}")

    def _meet_restricting(self, name: str, content: object, place: Place) -> None:
        # a reference to a variable that is not set stays as it is, and counts as a value
        with suppress(Rejected):
            content = place.resolve(content)
        restriction = self.restricting[name]
        if restriction.restricts(content):
            place.refuse(restriction.message)
        elif asks_for_something(content):
            place.warn("not implemented yet: ignored")

    def _suggestion(self, name: object) -> str:
        return suggestion(name, [*self.names, *self.ignored, *self.restricting])


def section(
    holder: type[A],
    *,
    ignored: frozenset[str] = frozenset(),
    restricting: Restrictions = NONE,
    hints: Mapping[str, str] | None = None,
    unknown: Unknown = Unknown.REFUSE,
) -> Section[A]:
    """Return the checker of a mapping from the class that declares it; the rest are `Section`'s attributes."""
    return Section(holder, settings_of(holder), ignored, restricting, hints or {}, unknown)


def values_of(holder: attrs.AttrsInstance, path: str = "") -> Iterator[tuple[str, Setting, object]]:
    """Yield each setting of a value and of nested values, with its path below `path` and its value."""
    for each in settings_of(type(holder)):
        value = getattr(holder, each.attribute)
        here = f"{path}.{each.name}" if path else each.path
        if isinstance(each.check, Section):
            yield from values_of(value, here)
        else:
            yield here, each, value


def yaml_of(value: object) -> str:
    """Return a checked value as one line of YAML; the default of a secret is not secret."""
    if isinstance(value, Secret):
        return yaml_of(value.reveal())
    if isinstance(value, tuple):
        return f"[{', '.join(yaml_of(each) for each in value)}]"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if value is None or isinstance(value, (bool, int, float, str)) or value == {}:
        return str(yaml.safe_dump(value, width=1000)).removesuffix("\n").removesuffix("\n...")
    raise TypeError(f"no YAML is known for {type(value).__name__}")
