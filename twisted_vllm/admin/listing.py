"""What lists are asked: which page of what, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from twisted_vllm.admin.litellm import LIST_DEFAULTS, refuse_what_is_not_done
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.store.repository import PageQuery

LARGEST_PAGE = 100
_DEFAULT_PAGE = 10

_SORTS = ("created_at", "updated_at", "expires", "key_alias", "key_name", "token", "user_id", "team_id", "spend")
_STATUSES = ("active", "expired", "revoked", "blocked", "deleted")
_FILTERS = ("user_id", "team_id", "key_alias", "key_hash")
_NAMES = ("page", "size", *_FILTERS, "return_full_object", "sort_by", "sort_order", "status")


@attrs.frozen
class ListQuery:
    """What ``/key/list`` was asked.

    Attributes:
        query: which page of what.
        full: whether whole records are wanted, in place of hashes.
        status: the state that the keys must have.
    """

    query: PageQuery
    full: bool
    status: str | None


def parse_list(query: Mapping[str, str], token_of: Callable[[str], str]) -> ListQuery:
    """Return what is asked of ``/key/list``; an empty parameter is as good as none.

    Args:
        query: the parameters of the query.
        token_of: returns the hash for a key or a hash.

    Raises:
        InvalidRequest: a parameter is not known, or its value is not one that it takes.
    """
    given = given_of(query, _NAMES, LIST_DEFAULTS)
    equals = {name: given[name] for name in _FILTERS if name in given}
    if "key_hash" in equals:
        equals["token"] = token_of(equals.pop("key_hash"))
    status = one_of(given, "status", _STATUSES, "") or None
    return ListQuery(
        query=PageQuery(
            page=whole(given, "page", 1, None),
            size=whole(given, "size", _DEFAULT_PAGE, LARGEST_PAGE),
            equals=equals,
            sort_by=one_of(given, "sort_by", _SORTS, "created_at"),
            descending=one_of(given, "sort_order", ("asc", "desc"), "desc") == "desc",
        ),
        full=one_of(given, "return_full_object", ("false", "true", "0", "1"), "false") in ("true", "1"),
        status="revoked" if status == "blocked" else status,
    )


def parse_aliases(query: Mapping[str, str]) -> PageQuery:
    """Return what is asked of ``/key/aliases``: a page of aliases in their order, those alone that hold `search`.

    Raises:
        InvalidRequest: a parameter is not known, or its value is not one that it takes.
    """
    given = given_of(query, ("page", "size", "search", "team_id"), {})
    return PageQuery(
        page=whole(given, "page", 1, None),
        size=whole(given, "size", 50, LARGEST_PAGE),
        equals={"team_id": given["team_id"]} if "team_id" in given else {},
        contains={"key_alias": given["search"]} if "search" in given else {},
        sort_by="key_alias",
        descending=False,
    )


def parse_users(query: Mapping[str, str]) -> PageQuery:
    """Return what is asked of ``/user/list``.

    Raises:
        InvalidRequest: a parameter is not known, or its value is not one that it takes.
    """
    names = ("role", "user_email", "user_alias", "page", "page_size", "sort_by", "sort_order")
    given = given_of(query, names, {"user_ids": None, "sso_user_ids": None, "team": None, "organization_ids": None})
    return PageQuery(
        page=whole(given, "page", 1, None),
        size=whole(given, "page_size", 25, LARGEST_PAGE),
        equals={"user_role": given["role"]} if "role" in given else {},
        contains={name: given[name] for name in ("user_email", "user_alias") if name in given},
        sort_by=one_of(
            given, "sort_by", ("created_at", "user_id", "user_email", "user_alias", "user_role"), "created_at"
        ),
        descending=one_of(given, "sort_order", ("asc", "desc"), "desc") == "desc",
    )


def given_of(query: Mapping[str, str], names: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters that hold something.

    Args:
        query: the parameters of the query.
        names: the names that mean something here.
        defaults: the names that LiteLLM knows beside them, and its default for each.

    Raises:
        InvalidRequest: a parameter is not known.
    """
    refuse_what_is_not_done({name: _value(text) for name, text in query.items()}, names, defaults)
    return {name: text for name, text in query.items() if text}


def _value(text: str) -> str | bool:
    return False if text.lower() == "false" else text


def whole(given: Mapping[str, str], name: str, default: int, largest: int | None) -> int:
    """Return a whole number from 1 on.

    Raises:
        InvalidRequest: it is none.
    """
    text = given.get(name, str(default))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1 or (largest is not None and number > largest):
        limits = "from 1" if largest is None else f"from 1 to {largest}"
        raise InvalidRequest(f"`{name}` must be a whole number {limits}.", param=name)
    return number


def one_of(given: Mapping[str, str], name: str, values: Iterable[str], default: str) -> str:
    """Return one of a few words, in lower case.

    Raises:
        InvalidRequest: it is none of them.
    """
    value = given.get(name, default).lower()
    if value != default and value not in values:
        raise InvalidRequest(f"`{name}` must be one of {', '.join(values)}.", param=name)
    return value
