"""Reads the body and the query of a request into the struct that its route declares, and names the field at fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_type_hints
from urllib.parse import parse_qsl

import msgspec
import msgspec.inspect
from twisted.web.iweb import IRequest

from twisted_vllm.admin.fields import REFERENCES, check_printable, redacted
from twisted_vllm.admin.models import Body, Query
from twisted_vllm.errors import InvalidRequest

BodyT = TypeVar("BodyT", bound=Body)
QueryT = TypeVar("QueryT", bound=Query)

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(\w+)`")
_WRONG_TYPE = re.compile(r"Expected `([^`]+)`, got `(\w+)`")
_BOUND = re.compile(r"Expected `(\w+)` (of length )?(<=|>=|<|>|==) (\S+)")
#: a name or an index in a path, as in members[0].role
_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")

#: msgspec's names of types
_JSON_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_BOUND_WORDS = {"<=": "at most ", ">=": "at least ", "<": "less than ", ">": "more than ", "==": ""}


async def read_object(request: IRequest) -> dict[str, Any]:
    """Return the JSON object in the body of a request. An empty body is an empty object.

    The body is not read before this is called.

    Raises:
        InvalidRequest: the body is not a JSON object.
        BodyTooLarge, NoRoomForBody, RequestTimeout: as from `GatewayRequest.read_body`.
    """
    # the type is not IRequest's: the gateway's own request arrives before its body
    body: bytes = await cast(Any, request).read_body()
    if not body.strip():
        return {}
    try:
        found = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        # msgspec.DecodeError and UnicodeDecodeError are ValueErrors. Their messages would not help the caller more.
        raise InvalidRequest("The body is not valid JSON.") from None
    if not isinstance(found, dict):
        raise InvalidRequest("The body must be a JSON object, as in {}.")
    return found


def read_query(request: IRequest) -> dict[str, str]:
    """Return the parameters of a request's query.

    Raises:
        InvalidRequest: a parameter is repeated or has a NUL, or there are more than 100.
    """
    query = request.uri.partition(b"?")[2]
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise InvalidRequest("The query is not valid: it must be percent-encoded UTF-8.") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest("The query gives a parameter more than once.")
    for name, value in found.items():
        if "\0" in value:
            # PostgreSQL refuses a NUL even in a comparison.
            raise InvalidRequest(f"`{name}` has a NUL character, which nothing has that is kept.", param=name)
    return found


def without_blanks(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body without the references that are empty: LiteLLM's dashboard sends "" where nothing was chosen."""
    return {name: value for name, value in body.items() if value != "" or name not in REFERENCES}


def parse_body(body: Mapping[str, Any], model: type[BodyT]) -> BodyT:
    """Return a JSON object as a struct, checked.

    Args:
        body: the object as it came.
        model: the struct.

    Raises:
        InvalidRequest: a field is unknown, unsupported or malformed; the message names it.
    """
    supported = model.__struct_fields__
    _refuse_unsupported(body, supported, model.UNSUPPORTED)
    values = {name: _whole(body[name], name in model.WHOLE_NUMBER_MAPS) for name in supported if name in body}
    try:
        found = msgspec.convert(values, model)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), model) from None
    for name in supported:
        check_printable(name, getattr(found, name))
    found.check()
    return found


def parse_query(query: Mapping[str, str], model: type[QueryT]) -> QueryT:
    """Return the parameters of a query as a struct.

    Args:
        query: the parameters as they came.
        model: the struct.

    Raises:
        InvalidRequest: a parameter is unknown or unsupported, or has a value that it does not take.
    """
    if not model.IGNORES_OTHERS:
        _refuse_unsupported(
            {name: False if text.lower() == "false" else text for name, text in query.items()},
            model.__struct_fields__,
            model.UNSUPPORTED,
        )
    types = _types_of(model)
    given = {name: query[name] for name in model.__struct_fields__ if query.get(name)}
    for name, text in given.items():
        if types[name] is int and not (text.isascii() and text.isdigit()):
            raise InvalidRequest(f"`{name}` must be a whole number.", param=name)
        choices = get_args(types[name])
        if choices:
            given[name] = text.lower()
            if given[name] not in choices:
                raise InvalidRequest(f"`{name}` must be one of {', '.join(filter(None, choices))}.", param=name)
    try:
        return msgspec.convert(given, model, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), model) from None


@cache
def _types_of(model: type[Query]) -> dict[str, Any]:
    return get_type_hints(model)


def _refuse_unsupported(given: Mapping[str, Any], supported: tuple[str, ...], unsupported: Mapping[str, Any]) -> None:
    """Check the names of what a caller sent.

    Args:
        given: the fields or parameters that came.
        supported: the names that this gateway supports.
        unsupported: the names that only LiteLLM supports, with LiteLLM's defaults.

    Raises:
        InvalidRequest: a name is unknown (the message suggests the nearest), or only LiteLLM supports it and its value
            asks for something.
    """
    known = set(supported)
    for name, value in given.items():
        if name in known:
            continue
        if name not in unsupported:
            near = get_close_matches(name, sorted(known | set(unsupported)), n=1)
            hint = f" Did you mean `{near[0]}`?" if near else f" Known are {', '.join(sorted(known))}."
            raise InvalidRequest(f"`{redacted(name)}` is not a known field.{hint}", param=redacted(name))
        if not _asks_for_nothing(value, unsupported[name]):
            raise InvalidRequest(
                f"`{name}` is a field of LiteLLM's that this gateway does not support. Leave it out, or send null.",
                param=name,
            )


def _asks_for_nothing(value: Any, default: Any) -> bool:
    if value is None or value is False or (isinstance(value, str | list | dict) and not value):
        return True
    # A limit of 0 asks for something, and bool is a kind of int.
    return not isinstance(value, bool) and default is not None and bool(value == default)


def _whole(value: Any, is_map: bool = False) -> Any:
    """Return a number without a fraction as an int, as JSON Schema's "integer" has it.

    Args:
        value: any JSON value.
        is_map: whether it may be an object of such numbers.
    """
    if is_map and isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _invalid(message: str, model: type[msgspec.Struct] | None = None) -> InvalidRequest:
    """Return the error for a message of msgspec's, with the path in our notation and nothing of the caller's input.

    Args:
        message: msgspec's message.
        model: the struct that was expected; the names in its parts serve as suggestions.
    """
    what, _, path = message.partition(" - at `")
    place = path.rstrip("`").removeprefix("key` in `").removeprefix("$").removeprefix(".")
    missing = _MISSING_FIELD.fullmatch(what)
    if missing is not None:
        place = f"{place}.{missing[1]}".removeprefix(".")
        return InvalidRequest(f"`{place}` is required.", param=place)
    unknown = _UNKNOWN_FIELD.fullmatch(what)
    if unknown is not None:
        near = get_close_matches(unknown[1], _nested_names(model), n=1)
        place = f"{place}.{redacted(unknown[1])}".removeprefix(".")
        hint = f" Did you mean `{near[0]}`?" if near else ""
        return InvalidRequest(f"`{place}` is not a known field.{hint}", param=place)
    if what.startswith("Invalid enum value"):
        return InvalidRequest(f"`{place}` must be one of {', '.join(_choices(model, place))}.", param=place)
    return InvalidRequest(f"`{place}` {_requirement(what)}.", param=place)


def _requirement(what: str) -> str:
    """Return what msgspec says of a value in the words of JSON and of people."""
    wrong = _WRONG_TYPE.fullmatch(what)
    if wrong is not None:
        wanted = " or ".join(_JSON_WORDS.get(each, each) for each in wrong[1].split(" | "))
        return f"must be {wanted}, and not {_JSON_WORDS.get(wrong[2], wrong[2])}"
    bound = _BOUND.fullmatch(what)
    if bound is not None:
        unit = "" if bound[2] is None else " characters" if bound[1] == "str" else " items"
        return f"must {'have' if unit else 'be'} {_BOUND_WORDS[bound[3]]}{bound[4]}{unit}"
    return f"cannot be used: {what[:1].lower()}{what[1:]}"


def _choices(model: type[msgspec.Struct] | None, place: str) -> list[str]:
    """Return the values that the field at a place takes, where they are listed."""
    found: list[Any] = [] if model is None else [msgspec.inspect.type_info(model)]
    for step in _STEP.findall(place):
        found = [part for each in _alternatives(found) for part in _parts(each, step)]
    values = (each.values for each in _alternatives(found) if isinstance(each, msgspec.inspect.LiteralType))
    return [str(value) for each in values for value in each]


def _alternatives(kinds: Iterable[Any]) -> Iterator[Any]:
    for kind in kinds:
        if isinstance(kind, msgspec.inspect.Metadata):
            yield from _alternatives((kind.type,))
        elif isinstance(kind, msgspec.inspect.UnionType):
            yield from _alternatives(kind.types)
        else:
            yield kind


def _parts(kind: Any, step: str) -> Iterator[Any]:
    """Return the types of what stands in a value: of a field by its name, or of the items."""
    if isinstance(kind, msgspec.inspect.StructType):
        yield from (field.type for field in kind.fields if field.encode_name == step)
    elif step.startswith("["):
        for name in ("item_type", "value_type"):
            if hasattr(kind, name):
                yield getattr(kind, name)


def _nested_names(model: type[msgspec.Struct] | None) -> list[str]:
    """Return the field names of a struct and of the structs in it."""
    if model is None:
        return []
    _, components = msgspec.json.schema_components([model])
    return sorted({name for schema in components.values() for name in schema.get("properties", ())})
