"""What the key endpoints take."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.admin.acts import AuditContext
from twisted_vllm.admin.allowances import Dollars, LimitFields, check_limits
from twisted_vllm.admin.durations import expiry_of
from twisted_vllm.admin.fields import (
    Alias,
    CustomKey,
    Duration,
    GracePeriod,
    GrantedHeaders,
    KeyOrHash,
    ModelAliases,
    Models,
    Never,
    NoGrace,
    RouteRules,
)
from twisted_vllm.admin.litellm import GENERATE_DEFAULTS, REGENERATE_DEFAULTS, UPDATE_DEFAULTS
from twisted_vllm.admin.schemas import (
    Label,
    Labels,
    StructT,
    check_alias,
    check_depth,
    check_models,
    is_printable,
    parse,
    plain_models,
)
from twisted_vllm.auth.policy import parse_rule
from twisted_vllm.auth.records import MANAGEMENT, KeyRecord
from twisted_vllm.auth.steering_headers import OPERATORS_HEADERS
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.ratelimit.allowance import UNLIMITED

#: a custom key: LiteLLM's prefix and length, and nothing that a header could not carry
_CUSTOM_KEY = re.compile(r"sk-[!-~]{13,509}")

#: keys that one request may name
MOST_KEYS = 500

#: LiteLLM's names of groups of routes, and what they are called here
_OWN_GROUPS = {"management_routes": MANAGEMENT, "info_routes": "read_only"}

#: what each of LiteLLM's types of keys may call; `default` says nothing of it
_ROUTES_OF_TYPE = {
    "llm_api": ("llm_api_routes",),
    "management": (MANAGEMENT,),
    "read_only": ("read_only",),
}

#: the randomness in a key's cache salt, in bytes
_SALT_BYTES = 16

_Priority = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
_HEADERS = frozenset(name.decode() for name in OPERATORS_HEADERS)


class KeyFields(LimitFields, frozen=True, kw_only=True):
    """What an administrator may say of a key; a `key_type` is short for the `allowed_routes` of that type."""

    key_alias: Alias | None = None
    duration: Duration | Never | None = None
    models: Models | None = None
    allowed_routes: RouteRules | None = None
    blocked: bool | None = None
    metadata: dict[str, Any] | None = None
    tags: Labels | None = None
    user_id: Label | None = None
    team_id: Label | None = None
    aliases: ModelAliases | None = None
    priority: _Priority | None = None
    granted_headers: GrantedHeaders | None = None
    cache_isolation: bool | None = None
    key_type: Literal["default", "llm_api", "management", "read_only"] | None = None

    def values(self, given: Container[str], act: AuditContext, before: KeyRecord | None = None) -> dict[str, Any]:
        """Return the attributes of a record that were given; null is the empty value of each.

        Args:
            given: the names of the fields that were.
            act: who gives them, and when.
            before: the record that they change, if there is one.
        """
        found: dict[str, Any] = {
            "key_alias": self.key_alias,
            "models": plain_models(self.models),
            "allowed_routes": tuple(_OWN_GROUPS.get(rule, rule) for rule in self.allowed_routes or ()),
            "blocked": bool(self.blocked),
            "metadata": self.metadata or {},
            "tags": self.tags or (),
            "user_id": self.user_id,
            "team_id": self.team_id,
            "aliases": self.aliases or {},
            "priority": self.priority,
            "granted_headers": tuple(name.lower() for name in self.granted_headers or ()),
        }
        found = {name: value for name, value in found.items() if name in given}
        found["allowance"] = self.limits(given, UNLIMITED if before is None else before.allowance)
        if "duration" in given:
            found["expires"] = expiry_of(self.duration, act.now)
        if self.key_type in _ROUTES_OF_TYPE:
            found["allowed_routes"] = _ROUTES_OF_TYPE[self.key_type]
        if "cache_isolation" in given:
            kept = None if before is None else before.cache_salt
            found["cache_salt"] = (kept or act.randbytes(_SALT_BYTES).hex()) if self.cache_isolation else None
        return found


class GenerateRequest(KeyFields, frozen=True, kw_only=True):
    """The body of ``POST /key/generate``. Null and absent are the same."""

    key: CustomKey | None = None


class UpdateRequest(KeyFields, frozen=True, kw_only=True):
    """The body of ``POST /key/update``: the key or its hash, else its alias; what is absent stays, null clears."""

    key: KeyOrHash | None = None


class RegenerateRequest(KeyFields, frozen=True, kw_only=True):
    """The body of ``POST /key/regenerate``; it may change the key likewise."""

    key: KeyOrHash | None = None
    new_key: CustomKey | None = None
    grace_period: GracePeriod | NoGrace | None = None


class NameRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /key/block`` and ``/key/unblock``."""

    key: KeyOrHash | None = None
    key_alias: Label | None = None


class ResetSpendRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /key/KEY/reset_spend``: what the key shall have spent in its budget's present period."""

    reset_to: Dollars


class DeleteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /key/delete``: keys or their hashes, or aliases, or both."""

    keys: Labels | None = None
    key_aliases: Labels | None = None


class InfoRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /v2/key/info``."""

    keys: Labels


class BulkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /key/bulk_update``."""

    keys: Annotated[tuple[dict[str, Any], ...], msgspec.Meta(min_length=1, max_length=MOST_KEYS)]


def parse_generate(body: Mapping[str, Any]) -> GenerateRequest:
    """Return what is asked of ``/key/generate``.

    Raises:
        InvalidRequest: something in it cannot be done; the message says what, and never quotes a key.
    """
    found = _checked(parse(body, GenerateRequest, GENERATE_DEFAULTS))
    _check_custom_key(found.key, "key")
    return found


def parse_service_account(body: Mapping[str, Any]) -> GenerateRequest:
    """Return what is asked of ``/key/service-account/generate``: a team's key that is no user's.

    Raises:
        InvalidRequest: something in it cannot be done.
    """
    found = parse_generate(body)
    if found.team_id is None:
        raise InvalidRequest("A service account belongs to a team: send `team_id`.", param="team_id")
    if found.user_id is not None:
        raise InvalidRequest("A service account belongs to no user: leave `user_id` out.", param="user_id")
    return found


def parse_update(body: Mapping[str, Any]) -> UpdateRequest:
    """Return what is asked of ``/key/update``.

    Raises:
        InvalidRequest: something in it cannot be done, or no key is named.
    """
    found = _checked(parse(body, UpdateRequest, UPDATE_DEFAULTS))
    if found.key is None and found.key_alias is None:
        raise InvalidRequest("Name the key: `key`, itself or its hash, or `key_alias`.", param="key")
    return found


def parse_regenerate(body: Mapping[str, Any]) -> RegenerateRequest:
    """Return what is asked of ``/key/regenerate``.

    Raises:
        InvalidRequest: something in it cannot be done, or no key is named.
    """
    found = _checked(parse(body, RegenerateRequest, REGENERATE_DEFAULTS))
    _check_custom_key(found.new_key, "new_key")
    if found.key is None and found.key_alias is None:
        raise InvalidRequest("Name the key: `key`, itself or its hash, or `key_alias`.", param="key")
    return found


def parse_name(body: Mapping[str, Any]) -> NameRequest:
    """Return which key is meant.

    Raises:
        InvalidRequest: none is named.
    """
    found = parse(body, NameRequest, {})
    if found.key is None and found.key_alias is None:
        raise InvalidRequest("Name the key: `key`, itself or its hash, or `key_alias`.", param="key")
    return found


def parse_delete(body: Mapping[str, Any]) -> DeleteRequest:
    """Return what is asked of ``/key/delete``.

    Raises:
        InvalidRequest: it names nothing to delete, or is not well formed.
    """
    found = parse(body, DeleteRequest, {})
    if not found.keys and not found.key_aliases:
        raise InvalidRequest(
            "Name what to delete: `keys`, a list of keys or their hashes, or `key_aliases`.", param="keys"
        )
    return found


def _check_custom_key(key: str | None, param: str) -> None:
    if key is not None and not _CUSTOM_KEY.fullmatch(key):
        raise InvalidRequest(
            f"`{param}` must begin with sk-, have 16 to 512 characters, and only printable ASCII without spaces.",
            param=param,
        )


def _checked(found: StructT) -> StructT:
    assert isinstance(found, KeyFields)
    check_alias(found.key_alias, "key_alias")
    check_models(found.models)
    check_limits(found)
    if found.key_type in _ROUTES_OF_TYPE and found.allowed_routes:
        raise InvalidRequest("`key_type` sets `allowed_routes`: send one of them.", param="key_type")
    for route in found.allowed_routes or ():
        parse_rule(_OWN_GROUPS.get(route, route))
    for name in found.granted_headers or ():
        if name.lower() not in _HEADERS:
            raise InvalidRequest(
                f"`granted_headers` may hold {', '.join(sorted(_HEADERS))}: other headers need no grant.",
                param="granted_headers",
            )
    for each in (*(found.aliases or {}).keys(), *(found.aliases or {}).values()):
        if not is_printable(each):
            raise InvalidRequest("`aliases`: holds a character that cannot be printed.", param="aliases")
    check_depth(found.metadata)
    return found
