"""What the queries of the admin API may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import msgspec

from twisted_vllm.admin.litellm import refuse_what_is_not_done
from twisted_vllm.admin.schemas import refusal
from twisted_vllm.errors import InvalidRequest

LARGEST_PAGE = 100

#: a page's number; the largest keeps what is skipped within a database's 64 bits
PageNumber = Annotated[int, msgspec.Meta(ge=1, le=999_999_999, description="Which page, from 1.")]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_PAGE, description="How many entries a page holds.")]
SortOrder = Literal["asc", "desc"]

#: a date or a moment, as `datetime.fromisoformat` reads it, or nothing
MOMENT = {
    "pattern": "^(2[0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    "(T([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?(Z|[+-](0[0-9]|1[0-2]):00)?)?)?$"
}
_WHEN = "a date, as in 2026-03-01, or a moment, as in 2026-03-01T12:00:00Z; in UTC unless it says otherwise"

QueryT = TypeVar("QueryT", bound="Query")


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a query; an empty one is as good as none."""


class NoQuery(Query, frozen=True, kw_only=True):
    """A query without parameters."""


class KeyInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /key/info``."""

    key: Annotated[str, msgspec.Meta(description="The key or its hash; without it, the caller's own.")] = ""


class KeyListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /key/list``."""

    page: PageNumber = 1
    size: PageSize = 10
    user_id: str = ""
    team_id: str = ""
    key_alias: str = ""
    key_hash: Annotated[str, msgspec.Meta(description="A key or its hash.")] = ""
    return_full_object: Annotated[
        Literal["false", "true", "0", "1"], msgspec.Meta(description="Whole records, in place of hashes.")
    ] = "false"
    sort_by: Literal[
        "created_at", "updated_at", "expires", "key_alias", "key_name", "token", "user_id", "team_id", "spend"
    ] = "created_at"
    sort_order: SortOrder = "desc"
    status: Annotated[
        Literal["", "active", "expired", "revoked", "blocked", "deleted"],
        msgspec.Meta(description="The state that the keys must have; `revoked` and `blocked` are the same."),
    ] = ""


class AliasesQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /key/aliases``."""

    page: PageNumber = 1
    size: PageSize = 50
    search: Annotated[str, msgspec.Meta(description="What must stand in the alias, whatever its case.")] = ""
    team_id: str = ""


class UserInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /user/info``."""

    user_id: Annotated[str, msgspec.Meta(description="The user; without it, the one of the caller's key.")] = ""


class UserListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /user/list``."""

    role: str = ""
    user_email: Annotated[str, msgspec.Meta(description="What must stand in the address.")] = ""
    user_alias: Annotated[str, msgspec.Meta(description="What must stand in the name.")] = ""
    page: PageNumber = 1
    page_size: PageSize = 25
    sort_by: Literal["created_at", "user_id", "user_email", "user_alias", "user_role"] = "created_at"
    sort_order: SortOrder = "desc"


class TeamInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /team/info``."""

    team_id: Annotated[str, msgspec.Meta(min_length=1)]


class TeamListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /team/list``."""

    user_id: Annotated[str, msgspec.Meta(description="Whose teams; without it, all.")] = ""


class AuditQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /audit/list``."""

    page: PageNumber = 1
    page_size: PageSize = 25
    actor: Annotated[str, msgspec.Meta(description="Who: `master`, or a key, its hash or its hash's first digits.")] = (
        ""
    )
    action: Annotated[str, msgspec.Meta(description="What was done, such as `key/update`.")] = ""
    object_type: Annotated[str, msgspec.Meta(description="`key`, `user`, `team` or `end_user`.")] = ""
    object_id: Annotated[
        str, msgspec.Meta(description="The id of a user, a team or an end user, or a key as in `actor`.")
    ] = ""
    request_id: str = ""
    start_date: Annotated[str, msgspec.Meta(description=f"The first moment: {_WHEN}.", extra_json_schema=MOMENT)] = ""
    end_date: Annotated[
        str,
        msgspec.Meta(
            description="The first moment that does not count any more, or the last day; likewise.",
            extra_json_schema=MOMENT,
        ),
    ] = ""
    sort_order: SortOrder = "desc"


def parse_query(query: Mapping[str, str], struct: type[QueryT], defaults: Mapping[str, Any] | None = None) -> QueryT:
    """Return a query as the struct whose fields it may have.

    Args:
        query: the parameters as they came.
        struct: the parameters that mean something.
        defaults: the names that LiteLLM knows beside them, and its default for each.

    Raises:
        InvalidRequest: a parameter is not known, or its value is not one that it takes.
    """
    refuse_what_is_not_done(
        {name: _flag(text) for name, text in query.items()}, struct.__struct_fields__, defaults or {}
    )
    hints = get_type_hints(struct)
    given = {name: query[name] for name in struct.__struct_fields__ if query.get(name)}
    for name, text in given.items():
        if hints[name] is int and not (text.isascii() and text.isdigit()):
            raise InvalidRequest(f"`{name}` must be a whole number.", param=name)
        words = get_args(hints[name])
        if words:
            given[name] = text.lower()
            if given[name] not in words:
                raise InvalidRequest(f"`{name}` must be one of {', '.join(filter(None, words))}.", param=name)
    try:
        return msgspec.convert(given, struct, strict=False)
    except msgspec.ValidationError as error:
        raise refusal(str(error)) from None


def _flag(text: str) -> str | bool:
    return False if text.lower() == "false" else text
