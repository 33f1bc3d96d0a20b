from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from admin_harness import Gateway
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.access.records import KeyRecord
from twisted_vllm.admin.listing import ListQuery, select_page

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def listed(gateway: Gateway, query: str) -> Any:
    answer = gateway.get(f"/key/list{query}")
    assert answer.status == 200, answer.body
    return answer.json


@pytest.fixture
def filled(gateway: Gateway) -> Gateway:
    """Keys a to e, a second apart; the first is a's."""
    for number, name in enumerate("abcde"):
        gateway.make_key(key_alias=name, user_id="ada" if number % 2 else "bob", team_id="x" if name == "c" else None)
        gateway.clock.advance(1)
    return gateway


def aliases(gateway: Gateway, query: str) -> str:
    keys = listed(gateway, f"?return_full_object=true{query}")["keys"]
    return "".join(key["key_alias"] for key in keys)


def test_no_keys_are_no_pages(gateway: Gateway) -> None:
    assert listed(gateway, "") == {"keys": [], "total_count": 0, "current_page": 1, "total_pages": 0}


def test_a_list_is_of_hashes_the_newest_first(gateway: Gateway) -> None:
    first = gateway.make_key()
    gateway.clock.advance(1)
    second = gateway.make_key()
    assert listed(gateway, "")["keys"] == [second["token"], first["token"]]


def test_a_full_list_holds_records_and_no_key(filled: Gateway) -> None:
    [key] = listed(filled, "?return_full_object=true&key_alias=c")["keys"]
    assert (key["key_alias"], key["team_id"], key["status"], key["spend"]) == ("c", "x", "active", 0.0)
    assert "key" not in key


def test_pages_hold_their_size_and_count_the_whole(filled: Gateway) -> None:
    assert aliases(filled, "&size=2&page=1") == "ed"
    assert aliases(filled, "&size=2&page=3") == "a"
    page = listed(filled, "?size=2&page=2")
    assert (page["total_count"], page["current_page"], page["total_pages"]) == (5, 2, 3)
    assert listed(filled, "?size=2&page=9")["keys"] == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("&user_id=ada", "db"),
        ("&team_id=x", "c"),
        ("&key_alias=b", "b"),
        ("&user_id=ada&key_alias=c", ""),
        ("&user_id=", "edcba"),
        ("&sort_by=key_alias&sort_order=asc", "abcde"),
        ("&sort_by=key_alias", "edcba"),
        ("&sort_by=created_at&sort_order=ASC", "abcde"),
        ("&include_team_keys=false&organization_id=", "edcba"),
        ("&status=deleted", ""),
        ("&status=active", "edcba"),
    ],
)
def test_a_list_is_filtered_and_sorted(filled: Gateway, query: str, found: str) -> None:
    assert aliases(filled, query) == found


def test_a_list_is_filtered_by_hash(gateway: Gateway) -> None:
    made = gateway.make_key()
    gateway.make_key()
    assert listed(gateway, f"?key_hash={made['token']}")["keys"] == [made["token"]]


def test_a_list_is_filtered_by_status(gateway: Gateway) -> None:
    gateway.make_key(key_alias="v")
    gateway.make_key(key_alias="x", duration="1s")
    gateway.make_key(key_alias="b", blocked=True)
    gateway.clock.advance(1)
    found = [aliases(gateway, f"&status={status}") for status in ("active", "expired", "revoked", "blocked")]
    assert found == ["v", "x", "b", "b"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?page=0", "page"),
        ("?page=-1", "page"),
        ("?page=%C2%B2", "page"),
        ("?size=101", "size"),
        ("?size=ten", "size"),
        ("?sort_by=colour", "sort_by"),
        ("?sort_order=up", "sort_order"),
        ("?return_full_object=maybe", "return_full_object"),
        ("?status=lost", "status"),
        ("?organization_id=x", "organization_id"),
        ("?include_team_keys=true", "include_team_keys"),
        ("?user=x", "user"),
    ],
)
def test_a_parameter_that_is_not_taken_is_named(gateway: Gateway, query: str, param: str) -> None:
    answer = gateway.get(f"/key/list{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


record = st.builds(
    KeyRecord,
    token=st.text("0123456789abcdef", min_size=64, max_size=64),
    key_name=st.just("sk-...abcd"),
    created_at=st.integers(0, 3).map(lambda days: NOW - timedelta(days=days)),
    updated_at=st.just(NOW),
    created_by=st.just("master"),
    key_alias=st.none() | st.sampled_from("xyz"),
    expires=st.none() | st.integers(-2, 2).map(lambda days: NOW + timedelta(days=days)),
    blocked=st.booleans(),
)
sorts = st.sampled_from(["created_at", "expires", "key_alias", "token", "spend", "user_id"])


@given(
    st.lists(record, max_size=12, unique_by=lambda each: each.token),
    st.builds(
        ListQuery,
        size=st.integers(1, 5),
        sort_by=sorts,
        descending=st.booleans(),
        status=st.none() | st.sampled_from(["active", "expired", "blocked", "deleted"]),
    ),
)
def test_the_pages_together_hold_each_key_that_matches_once(records: list[KeyRecord], query: ListQuery) -> None:
    first = select_page(records, query, NOW)
    pages = [select_page(records, attrs.evolve(query, page=number + 1), NOW) for number in range(first.total_pages)]
    found = [each.token for page in pages for each in page.records]
    assert len(found) == len(set(found)) == first.total_count
    assert all(0 < len(page.records) <= query.size for page in pages)
    if query.status is None:
        assert set(found) == {each.token for each in records}
    assert found == [each.token for each in select_page(records[::-1], attrs.evolve(query, size=100), NOW).records]
