"""What the key endpoints take, checked, and the fault named by its path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from twisted_vllm.access.policy import parse_rule
from twisted_vllm.admin.litellm import GENERATE_DEFAULTS, refuse_what_is_not_done
from twisted_vllm.errors import InvalidRequest

_LONGEST = 255
_MOST = 1000

#: how deep `metadata` may be nested: what one JSON reader takes, the next one must be able to take too
_DEEPEST = 32

_Label = Annotated[str, msgspec.Meta(min_length=1, max_length=_LONGEST)]
_Labels = Annotated[tuple[_Label, ...], msgspec.Meta(max_length=_MOST)]

#: a custom key: LiteLLM's prefix and length, and nothing that a header could not carry
_CUSTOM_KEY = re.compile(r"sk-[!-~]{13,509}")

#: LiteLLM's special model names: one means what an empty list means here, the others mean something that is not here
ALL_MODELS = "all-proxy-models"
_SPECIAL_MODELS = {
    "all-team-models": "teams have no models of their own in this gateway",
    "no-default-models": "a key cannot be without models in this gateway",
}

StructT = TypeVar("StructT", bound=msgspec.Struct)


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /key/generate``. Null and absent are the same."""

    key: str | None = None
    key_alias: _Label | None = None
    duration: str | int | None = None
    models: _Labels | None = None
    allowed_routes: _Labels | None = None
    blocked: bool | None = None
    metadata: dict[str, Any] | None = None
    tags: _Labels | None = None
    user_id: _Label | None = None
    team_id: _Label | None = None


class DeleteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /key/delete``: keys or their hashes, or aliases, or both."""

    keys: _Labels | None = None
    key_aliases: _Labels | None = None


def parse_generate(body: Mapping[str, Any]) -> GenerateRequest:
    """Return what is asked of ``/key/generate``.

    Raises:
        InvalidRequest: something in it cannot be done; the message says what, and never quotes a key.
    """
    found = _parse(body, GenerateRequest, GENERATE_DEFAULTS)
    if found.key is not None and not _CUSTOM_KEY.fullmatch(found.key):
        raise InvalidRequest(
            "`key` must begin with sk-, have 16 to 512 characters, and only printable ASCII without spaces.",
            param="key",
        )
    if found.key_alias is not None and found.key_alias.startswith("sk-"):
        raise InvalidRequest(
            "`key_alias` stands in logs and must not look like a key: begin it otherwise.", param="key_alias"
        )
    for model in found.models or ():
        if model in _SPECIAL_MODELS:
            raise InvalidRequest(
                f"`{model}` cannot be used: {_SPECIAL_MODELS[model]}. List the models.", param="models"
            )
    for route in found.allowed_routes or ():
        parse_rule(route)
    _refuse_depth(found.metadata)
    return found


def parse_delete(body: Mapping[str, Any]) -> DeleteRequest:
    """Return what is asked of ``/key/delete``.

    Raises:
        InvalidRequest: it names nothing to delete, or is not well formed.
    """
    found = _parse(body, DeleteRequest, {})
    if not found.keys and not found.key_aliases:
        raise InvalidRequest(
            "Name what to delete: `keys`, a list of keys or their hashes, or `key_aliases`.", param="keys"
        )
    return found


def _parse(body: Mapping[str, Any], struct: type[StructT], defaults: Mapping[str, Any]) -> StructT:
    supported = struct.__struct_fields__
    refuse_what_is_not_done(body, supported, defaults)
    try:
        found = msgspec.convert({name: body[name] for name in supported if name in body}, struct)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        place = path.rstrip("`")
        raise InvalidRequest(f"`{place}`: {what[:1].lower()}{what[1:]}.", param=place) from None
    for name in supported:
        _refuse_control_characters(name, getattr(found, name))
    return found


def _refuse_control_characters(name: str, value: object) -> None:
    """A label with a line break would forge log lines, and PostgreSQL takes no NUL in text."""
    if isinstance(value, str) and not value.isprintable():
        raise InvalidRequest(f"`{name}`: holds a character that cannot be printed.", param=name)
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            _refuse_control_characters(f"{name}[{number}]", item)


def _refuse_depth(metadata: object) -> None:
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
