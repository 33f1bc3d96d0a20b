"""How a setting is declared: once, as an attribute of the frozen class that holds its value.

    @attrs.frozen
    class Limits:
        max_body_bytes: int = setting(1_073_741_824, whole(), "A request's body.", unit="bytes")

`section` makes the checker of a mapping in the file from such a class. ``--check``, ``--help``, ``config/example.yaml``
and ``docs/configuration.md`` read the same declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, TypeVar

import attrs
import yaml

from twisted_vllm.config.checks import Checker, kind_of
from twisted_vllm.config.problems import Place, Rejected, nearest, suggestion
from twisted_vllm.config.secret import Secret

T = TypeVar("T")
A = TypeVar("A", bound=attrs.AttrsInstance)

#: the mapping of the file that holds what only this gateway has
OWN_BLOCK = "passthrough"

_METADATA = "setting"


@attrs.frozen
class Required:
    """Stands in place of a default where a setting must be written.

    Attributes:
        hint: what to write, for the message where it is missing.
    """

    hint: str


@attrs.frozen
class Inherited:
    """Stands in place of a default where another setting's value is used.

    Attributes:
        path: the place of that setting.
    """

    path: str


@attrs.frozen
class Items:
    """What a setting holds whose value is a list or a mapping of sections.

    Attributes:
        section: the checker of one item.
        path: how the reference writes the place of an item below the setting: ``[]``, or ``.NAME`` in a mapping.
        key: the name of the example's item in a mapping.
        more: YAML text of further items for the example.
    """

    section: Section[Any]
    path: str
    key: str = ""
    more: str = ""


@attrs.frozen
class Setting:
    """A setting as it was declared.

    Attributes:
        default: the value where the file says nothing, or `Required` or `Inherited`.
        check: what it may be; a `Section` where it is a mapping of further settings.
        doc: what it does, in plain text, for the example and the reference.
        name: its name in the file; empty where it is the attribute's.
        unit: what a number counts, where the checker does not know it.
        example: YAML text that the example shows in place of the default.
        block: the mapping at the top of the file that holds it; empty for the top itself. For settings of the classes
            that stand for the whole file; any other stands where its class does.
        environment: the variables that set it where the file does not; the first that is set and not empty wins.
        litellm: the path of the setting in LiteLLM's file that means the same, where it stands elsewhere there.
        per_server: YAML text of another value for one server, for the example; empty where it cannot differ.
        concerns: what it is about where it cannot differ from server to server: ``clients``.
        items: what the value holds, where it is a list or a mapping of sections.
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
    attribute: str = ""

    @property
    def path(self) -> str:
        """The place in the file of a setting that stands in one of the blocks."""
        return f"{self.block}.{self.name}" if self.block else self.name


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
) -> T:
    """Declare a setting as an attribute of a frozen class; the arguments are `Setting`'s attributes."""
    declared = Setting(
        default, check, doc, name, unit, example, block, environment, litellm, per_server, concerns, items
    )
    written: Any = attrs.NOTHING if isinstance(default, Required) else default
    field: T = attrs.field(default=written, metadata={_METADATA: declared})
    return field


def settings_of(holder: type[attrs.AttrsInstance]) -> tuple[Setting, ...]:
    """Return the settings that a class declares, in their order."""
    return tuple(
        attrs.evolve(declared, name=declared.name or field.name, attribute=field.name)
        for field in attrs.fields(holder)
        if (declared := field.metadata.get(_METADATA)) is not None
    )


class Unknown(Enum):
    """What becomes of a name that a section does not know."""

    #: keeps the gateway from starting
    REFUSE = "refuse"
    #: is warned of, unless it is close to a known one: a misspelt master key must not open the gateway
    WARN = "warn"
    #: is left alone
    ACCEPT = "accept"


@attrs.frozen
class Section(Generic[T]):
    """A checker for a mapping with known names; ``null`` is an empty one.

    Attributes:
        build: makes the result from what was found, by attribute.
        settings: the settings that it holds.
        ignored: names that are known and not implemented: each is warned of once.
        hints: what to say of names that belong elsewhere, so that none is taken for a mere unknown.
        unknown: what becomes of all other names.
    """

    build: Callable[..., T]
    settings: tuple[Setting, ...]
    ignored: frozenset[str] = frozenset()
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
                self._meet_unknown(name, place.key(name))
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

    def _meet_unknown(self, name: object, place: Place) -> None:
        if name in self.ignored:
            place.warn("not implemented yet: ignored")
            return
        if self.unknown is Unknown.ACCEPT:
            return
        close = nearest(name, [*self.hints, *self.names], cutoff=0.8)
        if close is not None and close in self.hints:
            spelling = "" if name == close else f"; did you mean '{close}'?"
            place.refuse(f"does not belong here ({self.hints[close]}){spelling}")
        elif close is not None or self.unknown is Unknown.REFUSE:
            place.refuse(f"is not a known setting{suggestion(name, [*self.names, *self.ignored])}")
        else:
            place.warn(f"not a known setting: ignored{suggestion(name, [*self.names, *self.ignored])}")


def section(
    holder: type[A],
    *,
    ignored: frozenset[str] = frozenset(),
    hints: Mapping[str, str] | None = None,
    unknown: Unknown = Unknown.REFUSE,
) -> Section[A]:
    """Return the checker of the mapping whose settings a class declares; the rest are `Section`'s attributes."""
    return Section(holder, settings_of(holder), ignored, hints or {}, unknown)


def values_of(holder: attrs.AttrsInstance, path: str = "") -> Iterator[tuple[str, Setting, object]]:
    """Yield each setting of a value and of the values in it, with its path below `path` and its value there."""
    for each in settings_of(type(holder)):
        value = getattr(holder, each.attribute)
        here = f"{path}.{each.name}" if path else each.path
        if isinstance(each.check, Section):
            yield from values_of(value, here)
        else:
            yield here, each, value


def yaml_of(value: object) -> str:
    """Return a checked value as one line of YAML that means it; the default of a secret is no secret."""
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
