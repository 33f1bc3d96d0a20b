"""What lists are asked: which page of what, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from twisted_vllm.admin.litellm import LIST_DEFAULTS, USER_LIST_DEFAULTS
from twisted_vllm.admin.queries import AliasesQuery, KeyListQuery, UserListQuery, parse_query
from twisted_vllm.storage.repository import PageQuery

_FILTERS = ("user_id", "team_id", "key_alias")


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
    asked = parse_query(query, KeyListQuery, LIST_DEFAULTS)
    equals = {name: getattr(asked, name) for name in _FILTERS if getattr(asked, name)}
    if asked.key_hash:
        equals["token"] = token_of(asked.key_hash)
    return ListQuery(
        query=PageQuery(
            page=asked.page,
            size=asked.size,
            equals=equals,
            sort_by=asked.sort_by,
            descending=asked.sort_order == "desc",
        ),
        full=asked.return_full_object in ("true", "1"),
        status="revoked" if asked.status == "blocked" else asked.status or None,
    )


def parse_aliases(query: Mapping[str, str]) -> PageQuery:
    """Return what is asked of ``/key/aliases``: a page of aliases in their order, those alone that hold `search`.

    Raises:
        InvalidRequest: a parameter is not known, or its value is not one that it takes.
    """
    asked = parse_query(query, AliasesQuery)
    return PageQuery(
        page=asked.page,
        size=asked.size,
        equals={"team_id": asked.team_id} if asked.team_id else {},
        contains={"key_alias": asked.search} if asked.search else {},
        sort_by="key_alias",
        descending=False,
    )


def parse_users(query: Mapping[str, str]) -> PageQuery:
    """Return what is asked of ``/user/list``.

    Raises:
        InvalidRequest: a parameter is not known, or its value is not one that it takes.
    """
    asked = parse_query(query, UserListQuery, USER_LIST_DEFAULTS)
    return PageQuery(
        page=asked.page,
        size=asked.page_size,
        equals={"user_role": asked.role} if asked.role else {},
        contains={name: getattr(asked, name) for name in ("user_email", "user_alias") if getattr(asked, name)},
        sort_by=asked.sort_by,
        descending=asked.sort_order == "desc",
    )
