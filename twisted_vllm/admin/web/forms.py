"""Makes forms of the structs that the admin API decodes, and JSON bodies of the forms that come back.

A field's name, bounds, choices and explanation are those of the struct, so that no form says anything else than the
API. A noun declares only which fields stand together (`Form`).

A form holds text. Lists have an item on each line, maps ``name = value``; what begins with a quotation mark is a JSON
string, for names that hold an equals sign or begin with a space. Of a form that changes a record, only the fields
whose text was changed are sent: whatever somebody else changes meanwhile stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from json import JSONDecodeError, JSONDecoder
from typing import Any

import attrs
import msgspec
import msgspec.inspect as inspect

from twisted_vllm.admin.models import Body, Json

#: kinds of fields
TEXT, WHOLE, DECIMAL, FLAG, CHOICE = "text", "whole", "decimal", "flag", "choice"
LINES, MAP, COUNTS, BUDGETS, OBJECT = "lines", "map", "counts", "budgets", "object"

#: kinds whose text has several lines
LONG_KINDS = frozenset((LINES, MAP, COUNTS, BUDGETS, OBJECT))

#: begins the name of the hidden field with what a field held when the form was shown
WAS = "was."

_FORMATS = {
    LINES: "One on each line.",
    MAP: "One on each line: NAME = MODEL.",
    COUNTS: "One on each line: NAME = NUMBER.",
    BUDGETS: "One on each line: MODEL = DOLLARS, or MODEL = DOLLARS / PERIOD, as in qwen = 5 / 1d.",
    OBJECT: "A JSON object.",
}
_BUDGET = re.compile(r"([0-9.eE+-]+)\s*(?:/\s*(\w+))?")
_ABBREVIATIONS = {"Id": "ID", "Rpm": "RPM", "Tpm": "TPM"}


class FormError(ValueError):
    """The text of a field cannot be read; the message says what it must be."""


@attrs.frozen(kw_only=True)
class Field:
    """A field of a form.

    Attributes:
        name: its name in the API.
        label: its name for people.
        kind: `TEXT` and others.
        help: what it means.
        required: whether a new record needs it.
        choices: the values that it may have; empty for any.
        minimum: the least value of a number; None for none.
        maximum: the highest value, likewise.
        longest: the most characters of a text; None for any number.
        initially: what a new record has without it, of a flag.
        is_secret: whether nobody shall see what is typed.
    """

    name: str
    label: str
    kind: str
    help: str
    required: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    longest: int | None = None
    initially: bool = False
    is_secret: bool = False

    @property
    def is_long(self) -> bool:
        """Whether its text has several lines."""
        return self.kind in LONG_KINDS

    @property
    def format(self) -> str:
        """How its text is written; empty where that is plain."""
        return _FORMATS.get(self.kind, "")

    def text_of(self, value: Any) -> str:
        """Return a value of the API as the text of the form."""
        if value is None:
            return ""
        if self.kind == FLAG:
            return "true" if value else ""
        if self.kind == LINES:
            return "\n".join(_written(each) for each in value)
        if self.kind in (MAP, COUNTS):
            return "\n".join(f"{_written(name, '=')} = {_written(str(each))}" for name, each in value.items())
        if self.kind == BUDGETS:
            return "\n".join(f"{_written(name, '=')} = {_budget_text(each)}" for name, each in value.items())
        if self.kind == OBJECT:
            return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() if value else ""
        return _number_text(value) if self.kind in (WHOLE, DECIMAL) else str(value)

    def value_of(self, text: str) -> Any:
        """Return the value that a text stands for; None for an empty one.

        Raises:
            FormError: it stands for none.
        """
        text = text.strip()
        if self.kind == FLAG:
            return text == "true"
        if not text:
            return None
        if self.kind == WHOLE:
            return _whole(text)
        if self.kind == DECIMAL:
            return _decimal(text)
        if self.kind == LINES:
            return [_one(line) for line in _lines(text)]
        if self.kind == OBJECT:
            return _object(text)
        if self.kind == MAP:
            return {name: _one(rest) for name, rest in _pairs(text)}
        if self.kind == COUNTS:
            return {name: _whole(rest) for name, rest in _pairs(text)}
        return {name: _budget(rest) for name, rest in _pairs(text)} if self.kind == BUDGETS else text


@attrs.frozen
class Group:
    """Fields that stand together.

    Attributes:
        title: the words above them.
        names: their names.
        opened: whether they are shown at once, or behind the title.
    """

    title: str
    names: tuple[str, ...]
    opened: bool = False


def _as_it_is(record: Json) -> Json:
    return record


@attrs.frozen(eq=False, kw_only=True, repr=False)
class Form:
    """The form for a body of the API.

    Attributes:
        body: the struct.
        groups: its fields, each in one of the groups.
        left_out: those that no form has: the page fills them in, or they stand for others.
        labels: names for people, where the API's name says too little.
        initially: flags that are set unless somebody says otherwise.
        secrets: fields that nobody shall see.
        read: returns a record of the API with the names of the form.
    """

    body: type[Body]
    groups: tuple[Group, ...]
    left_out: frozenset[str] = frozenset()
    labels: Mapping[str, str] = attrs.field(factory=dict)
    initially: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    read: Callable[[Json], Json] = _as_it_is

    def __repr__(self) -> str:
        return f"<Form for {self.body.__name__}>"

    @cached_property
    def fields(self) -> Mapping[str, Field]:
        """All fields by name, in order."""
        declared = {field.encode_name: field for field in inspect.type_info(self.body).fields}  # type: ignore[attr-defined]  # of a struct
        names = [name for group in self.groups for name in group.names]
        return {name: self._field(declared[name]) for name in names}

    def _field(self, declared: inspect.Field) -> Field:
        kind, words, limits = _shape(declared.type)
        name = declared.encode_name
        return Field(
            name=name,
            label=self.labels.get(name) or label_of(name),
            kind=kind,
            help=words,
            required=declared.required,
            initially=name in self.initially,
            is_secret=name in self.secrets,
            **limits,
        )

    def only(self, names: frozenset[str] | None) -> Form:
        """Return the form with some of its fields; None for all."""
        if names is None:
            return self
        kept = (attrs.evolve(each, names=tuple(name for name in each.names if name in names)) for each in self.groups)
        return attrs.evolve(self, groups=tuple(each for each in kept if each.names))

    def texts(self, record: Json | None = None) -> dict[str, str]:
        """Return the texts of a form: of a record, or of a new one."""
        if record is None:
            return {name: "true" if field.initially else "" for name, field in self.fields.items()}
        values = self.read(record)
        return {name: field.text_of(values.get(name)) for name, field in self.fields.items()}

    def sent(self, form: Mapping[str, Sequence[str]], *, prefix: str = "") -> dict[str, str]:
        """Return the texts of the fields in a form that was sent; a box that is not ticked is empty."""
        return {name: "\n".join(form.get(prefix + name, ())) for name in self.fields}

    def new(self, texts: Mapping[str, str]) -> tuple[Json, dict[str, str]]:
        """Return the body for a new record, without the fields that are empty, and what is wrong by field."""
        body, problems = self._values(texts, self.fields)
        kept = {}
        for name, value in body.items():
            field = self.fields[name]
            if value != field.initially if field.kind == FLAG else value is not None:
                kept[name] = value
        return kept, problems

    def changes(self, texts: Mapping[str, str], before: Mapping[str, str]) -> tuple[Json, dict[str, str]]:
        """Return the body for a change, and what is wrong by field. null clears a field.

        Args:
            texts: of the form.
            before: its texts when it was shown.
        """
        return self._values(texts, [name for name in self.fields if texts[name].strip() != before[name].strip()])

    def _values(self, texts: Mapping[str, str], names: Any) -> tuple[Json, dict[str, str]]:
        body: Json = {}
        problems: dict[str, str] = {}
        for name in names:
            try:
                body[name] = self.fields[name].value_of(texts[name])
            except FormError as error:
                problems[name] = str(error)
        return body, problems


def label_of(name: str) -> str:
    """Return a name of the API as people read it."""
    words = name.replace("_", " ").capitalize().split()
    return " ".join(_ABBREVIATIONS.get(word.capitalize(), word) for word in words)


def field_at_fault(param: str | None, form: Form) -> str | None:
    """Return the field of a form that an error of the API is about; None if it is about none of them."""
    return next((name for name in re.findall(r"\w+", param or "") if name in form.fields), None)


# the struct's types


def _shape(kind: inspect.Type) -> tuple[str, str, dict[str, Any]]:
    """Return the kind of a field, what it means, and its limits."""
    words, limits = "", dict[str, Any]()
    parts = list(_plain(kind, limits))
    schema = limits.pop("schema", {})
    for each in schema:
        words = words or each.get("description", "")
    choices = tuple(str(value) for each in schema for value in each.get("enum", ()))
    known = [part for part in parts if not isinstance(part, inspect.NoneType)]
    literal = [part for part in known if isinstance(part, inspect.LiteralType)]
    if literal:
        return CHOICE, words, {**limits, "choices": tuple(str(value) for value in literal[0].values)}
    first = known[0]
    if isinstance(first, inspect.BoolType):
        return FLAG, words, {}
    if isinstance(first, inspect.IntType):
        return WHOLE, words, _bounds(first)
    if isinstance(first, inspect.FloatType):
        return DECIMAL, words, _bounds(first)
    if isinstance(first, inspect.VarTupleType | inspect.ListType):
        return LINES, words, {"choices": _choices_of(first.item_type)}
    if isinstance(first, inspect.DictType):
        return _kind_of_map(first), words, {}
    return (CHOICE if choices else TEXT), words, {"choices": choices, "longest": getattr(first, "max_length", None)}


def _plain(kind: inspect.Type, limits: dict[str, Any]) -> Iterator[inspect.Type]:
    """Yield the types that a value may have, and note what is said of them, the outermost first."""
    if isinstance(kind, inspect.Metadata):
        limits.setdefault("schema", []).append(kind.extra_json_schema or {})
        yield from _plain(kind.type, limits)
    elif isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _plain(each, limits)
    else:
        yield kind


def _choices_of(kind: inspect.Type) -> tuple[str, ...]:
    limits: dict[str, Any] = {}
    list(_plain(kind, limits))
    return tuple(str(value) for each in limits.get("schema", ()) for value in each.get("enum", ()))


def _bounds(kind: inspect.IntType | inspect.FloatType) -> dict[str, Any]:
    return {"minimum": kind.ge, "maximum": kind.le}


def _kind_of_map(kind: inspect.DictType) -> str:
    values = list(_plain(kind.value_type, {}))
    if any(isinstance(each, inspect.StructType) for each in values):
        return BUDGETS
    if isinstance(values[0], inspect.IntType):
        return COUNTS
    return MAP if isinstance(values[0], inspect.StrType) else OBJECT


# texts


def _written(text: str, special: str = "") -> str:
    """Return a text as it stands on a line: as a JSON string where it would be read as another."""
    plain = text and text == text.strip() and not text.startswith('"') and not (special and special in text)
    return text if plain else msgspec.json.encode(text).decode()


def _lines(text: str) -> list[str]:
    return [line for each in text.split("\n") if (line := each.strip())]


def _one(text: str) -> str:
    text, rest = _read(text)
    if rest:
        raise FormError(f"Behind the quoted text there is more: {rest[:40]}")
    return text


def _read(line: str) -> tuple[str, str]:
    """Return the JSON string at the beginning of a line, and the rest; a line without one as a whole."""
    if not line.startswith('"'):
        return line, ""
    try:
        found, end = JSONDecoder().raw_decode(line)
    except JSONDecodeError:
        raise FormError(f"What begins with a quotation mark must be a JSON string: {line[:40]}") from None
    return str(found), line[end:].strip()


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    seen = set[str]()
    for line in _lines(text):
        if line.startswith('"'):
            name, rest = _read(line)
            has_value, rest = rest[:1] == "=", rest[1:]
        else:
            name, sign, rest = line.partition("=")
            has_value = bool(sign)
        name, rest = name if line.startswith('"') else name.strip(), rest.strip()
        if not has_value or not name or not rest:
            raise FormError(f"Each line must be NAME = VALUE, and this is not: {line[:40]}")
        if name in seen:
            raise FormError(f"This name stands there twice: {name[:40]}")
        seen.add(name)
        yield name, rest


def _whole(text: str) -> int:
    digits = text.replace("_", "").replace(",", "").replace(" ", "")
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", digits):
        raise FormError(f"This must be a whole number: {text[:40]}")
    return int(digits)


def _decimal(text: str) -> float:
    digits = text.removeprefix("$").replace(",", "").replace(" ", "")
    if not re.fullmatch(r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?|[0-9]+\.", digits):
        raise FormError(f"This must be a number, as in 12.50: {text[:40]}")
    return float(digits)


def _number_text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(value)


def _budget_text(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _number_text(value)
    amount = next(each for name in ("budget_limit", "max_budget") if (each := value.get(name)) is not None)
    period = value.get("time_period") or value.get("budget_duration")
    return _number_text(amount) + (f" / {period}" if period else "")


def _budget(text: str) -> Any:
    found = _BUDGET.fullmatch(text)
    if found is None:
        raise FormError(f"This must be an amount, or an amount and a period, as in 5 / 1d: {text[:40]}")
    amount = _decimal(found[1])
    return amount if found[2] is None else {"budget_limit": amount, "time_period": found[2]}


def _object(text: str) -> Json:
    try:
        found = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise FormError('This is not valid JSON. An object looks like {"ticket": "OPS-1"}.') from None
    if not isinstance(found, dict):
        raise FormError('This must be a JSON object, as in {"ticket": "OPS-1"}.')
    return found
