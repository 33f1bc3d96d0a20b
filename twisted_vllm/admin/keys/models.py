"""The requests of the key routes."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.field_rules import AllowedFields, FieldLimits, ForbiddenFields, changed_rules, check_paths
from twisted_vllm.admin.fields import (
    TEAM_MODELS,
    Alias,
    CustomKey,
    Duration,
    GracePeriod,
    GrantedHeaders,
    KeyOrHash,
    Label,
    Labels,
    LogMode,
    ModelAliases,
    Models,
    Never,
    NoGrace,
    Reference,
    RouteRules,
    check_alias,
    check_depth,
    check_models,
    check_printable_aliases,
    one_of_fields,
    stored_models,
)
from twisted_vllm.admin.keys.upper_bounds import bounded_allowance, bounded_expiry
from twisted_vllm.admin.limits import Dollars, LimitFields, Spent
from twisted_vllm.admin.models import (
    After,
    Body,
    Json,
    PageNumber,
    PageSize,
    Query,
    SortOrder,
    described,
)
from twisted_vllm.admin.unsupported import ON_KEYS
from twisted_vllm.auth.policy import parse_rule
from twisted_vllm.auth.records import MANAGEMENT, KeyRecord
from twisted_vllm.auth.steering_headers import GRANTABLE_HEADERS
from twisted_vllm.config.log_bodies import keep_opt_out
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.field_policy.rules import NO_RULES
from twisted_vllm.ratelimit.allowance import UNLIMITED
from twisted_vllm.storage.paging import PageQuery

#: keys that one bulk update may name
MAX_BULK_KEYS = 500

#: bytes of randomness in a key's cache salt
_SALT_BYTES = 16

#: a custom key: LiteLLM's prefix and length, in characters that a header can carry
_CUSTOM_KEY = re.compile(r"sk-[!-~]{13,509}")

#: LiteLLM's names of groups of routes, and ours
_OUR_GROUPS = {"management_routes": MANAGEMENT, "info_routes": "read_only"}

#: what each of LiteLLM's key types may call; `default` leaves `allowed_routes` as it is
_ROUTES_OF_TYPE = {
    "llm_api": ("llm_api_routes",),
    "management": (MANAGEMENT,),
    "read_only": ("read_only",),
}

#: columns that a search for keys looks at, and the beginning of a hash
SEARCHED = ("key_alias", "user_id", "key_name")
_HASH_PREFIX = re.compile("[0-9a-fA-F]{6,64}")

_HEADERS = frozenset(name.decode() for name in GRANTABLE_HEADERS)
Flag = Literal["false", "true", "0", "1"]
_Priority = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]

#: JSON Schema: a request sets `key_type` or `allowed_routes`, not both
ROUTES_ONCE: Json = {
    "anyOf": [
        {"properties": {"key_type": {"enum": ["default", None]}}},
        {"properties": {"allowed_routes": {"anyOf": [{"type": "null"}, {"maxItems": 0}]}}},
    ]
}

#: JSON Schema: a request names its key
NAMES_KEY: Json = one_of_fields("key", "key_alias")


class KeyFields(LimitFields, frozen=True, kw_only=True):
    """The fields of a key that an administrator may set. A `key_type` sets the `allowed_routes` of that type."""

    UNSUPPORTED = ON_KEYS

    @classmethod
    def flat(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a body without the interval of a rotation that it does not ask for: LiteLLM's dashboard sends it."""
        unused = "rotation_interval" if given.get("auto_rotate") is False else None
        return {name: value for name, value in given.items() if name != unused}

    key_alias: Annotated[Alias | None, described("A unique name for lists and logs. It must not look like a key.")] = (
        None
    )
    duration: Annotated[
        Duration | Never | None,
        described(
            "How long the key works, from now on: a number and a unit (s, m, h, d, w or mo), as in 30d. -1 is for ever."
        ),
    ] = None
    models: Annotated[
        Models | None,
        described(
            "The models that the key may use, with the wildcards `*` and `?`. Empty allows all. Its "
            "user, team and organization must allow a model as well."
        ),
    ] = None
    allowed_routes: Annotated[
        RouteRules | None,
        described(
            "The only routes that the key may call: paths, `prefix/*`, or classes of routes. Empty "
            "allows inference and read-only routes."
        ),
    ] = None
    blocked: Annotated[bool | None, described("Whether the key is refused.")] = None
    metadata: Annotated[dict[str, Any] | None, described("Your own notes, as a JSON object.")] = None
    tags: Annotated[Labels | None, described("Labels by which reports can be grouped.")] = None
    user_id: Annotated[
        Label | None,
        described(
            "The user whose key it is, whose models and limits hold for it too. An id that is no user is a mere label."
        ),
    ] = None
    team_id: Annotated[
        Reference | None, described("The team whose key it is, whose models and limits hold for it too.")
    ] = None
    organization_id: Annotated[
        Reference | None,
        described("The organization that counts the key's use. A key of a team is in its team's organization."),
    ] = None
    budget_id: Annotated[
        Reference | None, described("A budget whose limits hold where the key has none of its own.")
    ] = None
    aliases: Annotated[
        ModelAliases | None,
        described("Names of models that the key's callers may use, and the model that each stands for."),
    ] = None
    priority: Annotated[
        _Priority | None, described("The place in the gateway's queue and in vLLM's: a lower number goes first.")
    ] = None
    granted_headers: Annotated[
        GrantedHeaders | None,
        described("Headers that steer vLLM, or name the server, and that the key's callers may set."),
    ] = None
    cache_isolation: Annotated[
        bool | None,
        described("Whether vLLM's prefix cache keeps this key's prompts apart, so that no other key can time them."),
    ] = None
    log_bodies: Annotated[
        LogMode | None,
        described(
            "What traces and sinks get of prompts and answers: nothing (`off`), only their sizes "
            "(`metadata`), or all (`full`)."
        ),
    ] = None
    spend: Annotated[
        Spent | None,
        described(
            "What the key has spent already in the present budget period, in US dollars, such as at another gateway."
        ),
    ] = None
    forbidden_fields: Annotated[
        ForbiddenFields | None, described("Fields of a request's body that the key must not send, such as `logprobs`.")
    ] = None
    field_limits: Annotated[
        FieldLimits | None,
        described("The largest value of a number, or size of a list or text, that the key may send in a field."),
    ] = None
    allowed_fields: Annotated[
        AllowedFields | None, described("Fields that are closed to others and open to this key; `*` is every field.")
    ] = None
    key_type: Annotated[
        Literal["default", "llm_api", "management", "read_only"] | None,
        described(
            "Short for the `allowed_routes` of a kind: inference (`llm_api`), the admin API "
            "(`management`), or reading (`read_only`)."
        ),
    ] = None

    WHOLE_NUMBER_MAPS = (*LimitFields.WHOLE_NUMBER_MAPS, "field_limits")

    def check(self) -> None:
        """Check names, models, limits, routes, headers, fields and metadata.

        Raises:
            InvalidRequest: a value cannot be used; the message never quotes a key.
        """
        check_alias(self.key_alias, "key_alias")
        check_models(name for name in self.models or () if name != TEAM_MODELS)
        super().check()
        if self.key_type in _ROUTES_OF_TYPE and self.allowed_routes:
            raise InvalidRequest("`key_type` sets `allowed_routes`: send one of them.", param="key_type")
        for route in self.allowed_routes or ():
            parse_rule(_OUR_GROUPS.get(route, route))
        for name in self.granted_headers or ():
            if name.lower() not in _HEADERS:
                raise InvalidRequest(
                    f"`granted_headers` may hold {', '.join(sorted(_HEADERS))}: other headers need no grant.",
                    param="granted_headers",
                )
        check_printable_aliases(self.aliases)
        for name in ("forbidden_fields", "field_limits", "allowed_fields"):
            check_paths(name, getattr(self, name))
        check_depth(self.metadata)

    def values(self, given: Container[str], audit: AuditContext, before: KeyRecord | None = None) -> dict[str, Any]:
        """Return the attributes of a `KeyRecord` that a request sets. null sets the empty value.

        Args:
            given: the names of the fields that the request has.
            audit: when the request came, the operator's bounds, and a source of randomness.
            before: the key until now; None for a new key.

        Raises:
            InvalidRequest: a limit is more than the operator's bound, or the key is to have the models of its team and
                has none.
        """
        found: dict[str, Any] = {
            "key_alias": self.key_alias,
            "models": stored_models(self.models) if TEAM_MODELS not in (self.models or ()) else (),
            "allowed_routes": tuple(_OUR_GROUPS.get(rule, rule) for rule in self.allowed_routes or ()),
            "blocked": bool(self.blocked),
            "metadata": self.metadata or {},
            "tags": self.tags or (),
            "user_id": self.user_id,
            "team_id": self.team_id,
            "organization_id": self.organization_id,
            "budget_id": self.budget_id,
            "aliases": self.aliases or {},
            "priority": self.priority,
            "granted_headers": tuple(name.lower() for name in self.granted_headers or ()),
            "log_bodies": self.log_bodies,
        }
        found = {name: value for name, value in found.items() if name in given}
        keep_opt_out(found, None if before is None else before.metadata)
        if TEAM_MODELS in (self.models or ()) and not found.get("team_id", before and before.team_id):
            raise InvalidRequest(
                f"`{TEAM_MODELS}` is for keys of a team: send `team_id` as well, or an empty list for all models.",
                param="models",
            )
        limits = self.limits(given, UNLIMITED if before is None else before.allowance)
        found["allowance"] = bounded_allowance(audit.key_bounds, limits, given, audit.now)
        found["fields"] = changed_rules(
            {name: getattr(self, name) for name in ("forbidden_fields", "field_limits", "allowed_fields")},
            given,
            NO_RULES if before is None else before.fields,
        )
        if "duration" in given:
            found["expires"] = bounded_expiry(audit.key_bounds, self.duration, audit.now)
        if self.key_type in _ROUTES_OF_TYPE:
            found["allowed_routes"] = _ROUTES_OF_TYPE[self.key_type]
        if "cache_isolation" in given:
            salt = None if before is None else before.cache_salt
            found["cache_salt"] = (salt or audit.randbytes(_SALT_BYTES).hex()) if self.cache_isolation else None
        return found


class GenerateRequest(KeyFields, frozen=True, kw_only=True):
    """The body of ``POST /key/generate``. A field that is null is the same as none."""

    key: Annotated[
        CustomKey | None,
        described(
            "A value of your own: `sk-` and 16 to 512 characters in all, printable ASCII without "
            "spaces. Without it, a random one."
        ),
    ] = None

    def check(self) -> None:
        """Check the fields of the key, and its value."""
        super().check()
        _check_custom_key(self.key, "key")


class UpdateRequest(KeyFields, frozen=True, kw_only=True):
    """The body of ``POST /key/update``. It names the key by `key`, or else by `key_alias`. null clears a field."""

    key: Annotated[KeyOrHash | None, described("The key to change: itself, or its SHA-256 in hex.")] = None

    def check(self) -> None:
        """Check the fields of the key, and that one is named."""
        super().check()
        _check_named(self.key, self.key_alias)


class RegenerateRequest(KeyFields, frozen=True, kw_only=True):
    """The body of ``POST /key/regenerate``. It may change fields of the key as well, as in ``/key/update``."""

    UNSUPPORTED = {**ON_KEYS, "new_master_key": None}

    key: Annotated[KeyOrHash | None, described("The key to regenerate: itself, or its SHA-256 in hex.")] = None
    new_key: Annotated[
        CustomKey | None, described("The new value: `sk-` and 16 to 512 characters in all. Without it, a random one.")
    ] = None
    grace_period: Annotated[
        GracePeriod | NoGrace | None,
        described("How long the old value still works, as in 1h. Without it, it stops at once."),
    ] = None

    def check(self) -> None:
        """Check the fields of the key, its new value, and that a key is named."""
        super().check()
        _check_custom_key(self.new_key, "new_key")
        _check_named(self.key, self.key_alias)


class NameRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /key/block`` and ``/key/unblock``."""

    key: Annotated[KeyOrHash | None, described("The key: itself, or its SHA-256 in hex.")] = None
    key_alias: Annotated[Label | None, described("The key's alias, if `key` does not name it.")] = None

    def check(self) -> None:
        """Check that a key is named."""
        _check_named(self.key, self.key_alias)


class ResetSpendRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /key/KEY/reset_spend``: the key's new spend in its budget's current period."""

    reset_to: Dollars


class DeleteRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /key/delete``: keys or their hashes, aliases, or both."""

    keys: Annotated[Labels | None, described("The keys to delete: themselves, or their SHA-256 in hex.")] = None
    key_aliases: Annotated[Labels | None, described("Aliases of keys to delete.")] = None

    def check(self) -> None:
        """Check that a key is named.

        Raises:
            InvalidRequest: none is.
        """
        if not self.keys and not self.key_aliases:
            raise InvalidRequest(
                "Name what to delete: `keys`, a list of keys or their hashes, or `key_aliases`.", param="keys"
            )


class InfoRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /v2/key/info``."""

    keys: Annotated[Labels, described("The keys: themselves, or their SHA-256 in hex.")]


class BulkRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /key/bulk_update``: bodies of ``/key/update``."""

    keys: Annotated[
        tuple[dict[str, Any], ...],
        msgspec.Meta(min_length=1, max_length=MAX_BULK_KEYS, description="Bodies of `/key/update`, one for each key."),
    ]


def _check_custom_key(key: str | None, param: str) -> None:
    if key is not None and not _CUSTOM_KEY.fullmatch(key):
        raise InvalidRequest(
            f"`{param}` must begin with sk-, have 16 to 512 characters, and only printable ASCII without spaces.",
            param=param,
        )


def _check_named(key: str | None, key_alias: str | None) -> None:
    if key is None and key_alias is None:
        raise InvalidRequest("Name the key: `key`, itself or its hash, or `key_alias`.", param="key")


class KeyInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /key/info``."""

    key: Annotated[str, msgspec.Meta(description="The key or its hash. Default: the caller's key.")] = ""


class KeyListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /key/list``."""

    UNSUPPORTED = {
        "project_id": None,
        "agent_id": None,
        "access_group_id": None,
    }

    page: PageNumber = 1
    after: After = ""
    size: PageSize = 10
    user_id: str = ""
    team_id: str = ""
    organization_id: str = ""
    budget_id: Annotated[str, msgspec.Meta(description="Only keys that name this budget.")] = ""
    key_alias: str = ""
    key_hash: Annotated[str, msgspec.Meta(description="A key or its hash.")] = ""
    search: Annotated[
        str,
        msgspec.Meta(
            description="Text that the alias, the user's id or the end of the key contains, in any case, or the first "
            "digits of its hash (six at least)."
        ),
    ] = ""
    return_full_object: Annotated[
        Flag,
        msgspec.Meta(description="Whether to return whole keys, not only hashes."),
    ] = "false"
    expand: Annotated[
        Literal["", "user"], msgspec.Meta(description="`user` returns whole keys, each with its user.")
    ] = ""
    sort_by: Literal[
        "created_at", "updated_at", "expires", "key_alias", "key_name", "token", "user_id", "team_id", "spend"
    ] = "created_at"
    sort_order: SortOrder = "desc"
    include_team_keys: Annotated[Flag, msgspec.Meta(description="No effect: an administrator sees every key.")] = (
        "false"
    )
    include_created_by_keys: Annotated[Flag, msgspec.Meta(description="No effect, likewise.")] = "false"
    status: Annotated[
        Literal["", "active", "expired", "revoked", "blocked", "deleted"],
        msgspec.Meta(description="The state of the keys. `revoked` and `blocked` are the same."),
    ] = ""

    @property
    def wants_records(self) -> bool:
        """Whether whole keys are wanted, and not only their hashes."""
        return self.return_full_object in ("true", "1") or bool(self.expand)

    @property
    def state(self) -> str | None:
        """The state that the keys must have, as `status_of` names it; None for any."""
        return "revoked" if self.status == "blocked" else self.status or None

    def page_query(self) -> PageQuery:
        """Return the page that is asked for."""
        names = ("user_id", "team_id", "organization_id", "budget_id", "key_alias")
        equals = {name: getattr(self, name) for name in names if getattr(self, name)}
        if self.key_hash:
            equals["token"] = token_of(self.key_hash)
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.size,
            equals=equals,
            search=self.search,
            search_in=SEARCHED,
            search_begins=("token",) if _HASH_PREFIX.fullmatch(self.search) else (),
            sort_by=self.sort_by,
            descending=self.sort_order == "desc",
        )


class AliasesQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /key/aliases``."""

    page: PageNumber = 1
    after: After = ""
    size: PageSize = 50
    search: Annotated[str, msgspec.Meta(description="Text that the alias contains, in any case.")] = ""
    team_id: str = ""

    def page_query(self) -> PageQuery:
        """Return the page that is asked for."""
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.size,
            equals={"team_id": self.team_id} if self.team_id else {},
            contains={"key_alias": self.search} if self.search else {},
            sort_by="key_alias",
            descending=False,
        )
