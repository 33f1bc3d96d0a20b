"""How the bodies of the admin API are checked, and a fault named by its path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

import msgspec

from twisted_vllm.admin.litellm import refuse_what_is_not_done, shown
from twisted_vllm.errors import InvalidRequest

LONGEST = 255
MOST = 1000

#: how deep `metadata` may be nested: what one JSON reader takes, the next one must be able to take too
_DEEPEST = 32

#: a text without characters that end a line, cannot be seen or turn the writing round: they would forge log lines and
#: names. What Unicode has not assigned yet may stand: it depends on whose tables are asked
PRINTABLE = (
    r"^[^\x00-\x1f\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff0-\uffff"
    "\U000e0000-\U000e0fff]*$"
)
_printable = re.compile(PRINTABLE.removesuffix("$"))

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST, extra_json_schema={"pattern": PRINTABLE})]
Labels = Annotated[tuple[Label, ...], msgspec.Meta(max_length=MOST)]
LabelMap = Annotated[dict[Label, Label], msgspec.Meta(max_length=MOST)]

#: LiteLLM's special model names: one means what an empty list means here, the others mean something that is not here
ALL_MODELS = "all-proxy-models"
SPECIAL_MODELS = {
    "all-team-models": "leave `models` empty instead: a key is held to its team's models in any case",
    "no-default-models": "block what shall use no model",
}

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")

StructT = TypeVar("StructT", bound=msgspec.Struct)


def parse(body: Mapping[str, Any], struct: type[StructT], defaults: Mapping[str, Any]) -> StructT:
    """Return a body as the struct whose fields it may have.

    Args:
        body: what was sent.
        struct: the fields that mean something.
        defaults: the fields that LiteLLM knows beside them, and its default for each.

    Raises:
        InvalidRequest: a field is not known, is not done here, or is not well formed; the message names it.
    """
    supported = struct.__struct_fields__
    refuse_what_is_not_done(body, supported, defaults)
    maps = getattr(struct, "WHOLE_NUMBERS_WITHIN", ())
    try:
        found = msgspec.convert({name: _whole(body[name], name in maps) for name in supported if name in body}, struct)
    except msgspec.ValidationError as error:
        raise refusal(str(error), struct) from None
    for name in supported:
        _refuse_control_characters(name, getattr(found, name))
    return found


def _whole(value: Any, within: bool = False) -> Any:
    """Return a number without a fraction as a whole one: JSON knows no difference (JSON Schema, "integer").

    Args:
        value: what was sent.
        within: whether it may be an object of such numbers.
    """
    if within and isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def refusal(message: str, struct: type[msgspec.Struct] | None = None) -> InvalidRequest:
    """Return what a message of msgspec's means; its path becomes ours, and nothing of the caller's is repeated.

    Args:
        message: what msgspec said.
        struct: what was wanted; its parts know the nearest name to one that is not known.
    """
    what, _, path = message.partition(" - at `")
    place = path.rstrip("`").removeprefix("key` in `").removeprefix("$").removeprefix(".")
    missing = _MISSING.fullmatch(what)
    if missing is not None:
        place = f"{place}.{missing[1]}".removeprefix(".")
        return InvalidRequest(f"`{place}` is required.", param=place)
    unknown = _UNKNOWN.fullmatch(what)
    if unknown is not None:
        near = get_close_matches(unknown[1], _names_within(struct), n=1)
        place = f"{place}.{shown(unknown[1])}".removeprefix(".")
        hint = f" Did you mean `{near[0]}`?" if near else ""
        return InvalidRequest(f"`{place}` is not a known field.{hint}", param=place)
    if what.startswith("Invalid enum value"):
        return InvalidRequest(f"`{place}` is not one of the values that it takes.", param=place)
    return InvalidRequest(f"`{place}`: {what[:1].lower()}{what[1:]}.", param=place)


def _names_within(struct: type[msgspec.Struct] | None) -> list[str]:
    """Return the names of all fields of a struct's parts."""
    if struct is None:
        return []
    _, components = msgspec.json.schema_components([struct])
    return sorted({name for schema in components.values() for name in schema.get("properties", ())})


def is_printable(text: str) -> bool:
    """Tell whether a text may stand in a name."""
    return _printable.fullmatch(text) is not None


def _refuse_control_characters(name: str, value: object) -> None:
    """A label with a line break would forge log lines, and PostgreSQL takes no NUL in text."""
    if isinstance(value, str) and not is_printable(value):
        raise InvalidRequest(f"`{name}`: holds a character that cannot be printed.", param=name)
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            _refuse_control_characters(f"{name}[{number}]", item)
    if isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            _refuse_control_characters(f"{name}.{field}", getattr(value, field))


def check_models(models: Iterable[str] | None) -> None:
    """Return if every one of `models` can be one.

    Raises:
        InvalidRequest: it is a special name of LiteLLM's that means nothing here.
    """
    for model in models or ():
        if model in SPECIAL_MODELS:
            raise InvalidRequest(f"`{model}` cannot be used: {SPECIAL_MODELS[model]}.", param="models")


def plain_models(models: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return models as they are kept: none in the place of all."""
    return () if models is None or ALL_MODELS in models else models


def check_alias(alias: str | None, param: str) -> None:
    """Return if an alias may stand in logs.

    Raises:
        InvalidRequest: it looks like a key.
    """
    if alias is not None and alias.startswith("sk-"):
        raise InvalidRequest(f"`{param}` stands in logs and must not look like a key: begin it otherwise.", param=param)


def check_depth(metadata: object) -> None:
    """Return if `metadata` is not nested deeper than readers of JSON take.

    Raises:
        InvalidRequest: it is.
    """
    level = [metadata]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise InvalidRequest(f"`metadata` must not be nested deeper than {_DEEPEST} levels.", param="metadata")
