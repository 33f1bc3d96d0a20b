"""``GET /key/list``: which keys, in which order, which page of them. Plain decisions on records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import attrs

from twisted_vllm.access.records import KeyRecord
from twisted_vllm.admin.litellm import LIST_DEFAULTS, refuse_what_is_not_done
from twisted_vllm.errors import InvalidRequest

LARGEST_PAGE = 100
_DEFAULT_PAGE = 10

_SORTS = ("created_at", "updated_at", "expires", "key_alias", "key_name", "token", "user_id", "team_id", "spend")
_STATUSES = ("active", "expired", "revoked", "blocked", "deleted")
_FILTERS = ("user_id", "team_id", "key_alias", "key_hash")
_NAMES = ("page", "size", *_FILTERS, "return_full_object", "sort_by", "sort_order", "status")


def status_of(record: KeyRecord, now: datetime) -> str:
    """Return LiteLLM's word for a key's state: ``active``, ``expired``, or ``revoked`` for a blocked one."""
    if record.blocked:
        return "revoked"
    return "expired" if record.expires is not None and now >= record.expires else "active"


@attrs.frozen
class ListQuery:
    """What ``/key/list`` was asked.

    Attributes:
        page: the page's number, from 1.
        size: how many keys a page holds.
        equals: fields of the record and the value that each must have.
        full: whether whole records are wanted, in place of hashes.
        sort_by: the field to sort by.
        descending: whether the largest comes first.
        status: the state that the keys must have.
    """

    page: int = 1
    size: int = _DEFAULT_PAGE
    equals: dict[str, str] = attrs.field(factory=dict)
    full: bool = False
    sort_by: str = "created_at"
    descending: bool = True
    status: str | None = None


@attrs.frozen
class Page:
    """One page of keys and what stands around it."""

    records: list[KeyRecord]
    total_count: int
    current_page: int
    total_pages: int


def parse_list(query: Mapping[str, str], token_of: Callable[[str], str]) -> ListQuery:
    """Return what is asked of ``/key/list``; an empty parameter is as good as none.

    Args:
        query: the parameters of the query.
        token_of: returns the hash for a key or a hash.

    Raises:
        InvalidRequest: a parameter is not known, or its value is not one that it takes.
    """
    refuse_what_is_not_done({name: _value(text) for name, text in query.items()}, _NAMES, LIST_DEFAULTS)
    given = {name: text for name, text in query.items() if text}
    equals = {name: given[name] for name in _FILTERS if name in given}
    if "key_hash" in equals:
        equals["token"] = token_of(equals.pop("key_hash"))
    return ListQuery(
        page=_whole(given, "page", 1, None),
        size=_whole(given, "size", _DEFAULT_PAGE, LARGEST_PAGE),
        equals=equals,
        full=_one_of(given, "return_full_object", ("false", "true", "0", "1"), "false") in ("true", "1"),
        sort_by=_one_of(given, "sort_by", _SORTS, "created_at"),
        descending=_one_of(given, "sort_order", ("asc", "desc"), "desc") == "desc",
        status=_one_of(given, "status", _STATUSES, "") or None,
    )


def _value(text: str) -> str | bool:
    return False if text.lower() == "false" else text


def _whole(given: Mapping[str, str], name: str, default: int, largest: int | None) -> int:
    text = given.get(name, str(default))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1 or (largest is not None and number > largest):
        limits = "from 1" if largest is None else f"from 1 to {largest}"
        raise InvalidRequest(f"`{name}` must be a whole number {limits}.", param=name)
    return number


def _one_of(given: Mapping[str, str], name: str, values: Iterable[str], default: str) -> str:
    value = given.get(name, default).lower()
    if value != default and value not in values:
        raise InvalidRequest(f"`{name}` must be one of {', '.join(values)}.", param=name)
    return value


def select_page(records: Iterable[KeyRecord], query: ListQuery, now: datetime) -> Page:
    """Return the page that was asked for; one after the last is empty."""
    wanted = "revoked" if query.status == "blocked" else query.status
    found = [
        record
        for record in records
        if all(getattr(record, name) == value for name, value in query.equals.items())
        and (wanted is None or status_of(record, now) == wanted)
    ]
    found.sort(key=lambda record: _rank(record, query.sort_by), reverse=query.descending)
    start = (query.page - 1) * query.size
    return Page(
        records=found[start : start + query.size],
        total_count=len(found),
        current_page=query.page,
        total_pages=-(-len(found) // query.size),
    )


def _rank(record: KeyRecord, name: str) -> tuple[Any, ...]:
    # Spend is not accounted yet: no key has a value. None is the largest, as in PostgreSQL; the hash decides ties.
    value = None if name == "spend" else getattr(record, name)
    return (value is None, "" if value is None else value, record.token)
