"""Whose requests somebody sees, their order, and what several processes say together."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.observability.live_rows import live_request
from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.observability.live_requests import (
    LiveQuery,
    LiveReport,
    Whose,
    in_order,
    merged,
)
from twisted_vllm.observability.request_states import MOST_NAMES


def key(key_id: str, user_id: str | None = None, team_id: str | None = None) -> Principal:
    return Principal("key", "name", key_id=key_id, user_id=user_id, team_id=team_id)


@pytest.mark.parametrize(
    ("whose", "principal", "seen", "own"),
    [
        (Whose("a"), key("a"), True, True),
        (Whose("a"), key("b"), False, False),
        # a label of one key is no user
        (Whose("a"), key("b", user_id=""), False, False),
        (Whose("a", "ada"), key("b", user_id="ada"), True, True),
        (Whose("a", "ada"), key("b", user_id="bob"), False, False),
        (Whose("a", "ada", ("x",)), key("b", user_id="bob", team_id="x"), True, False),
        (Whose("a", "ada", ("x",)), key("b", user_id="bob", team_id="y"), False, False),
        (Whose("a", "ada", ("x",)), key("b"), False, False),
        (Whose("", "", ()), MASTER, False, False),
        (Whose("", "", ()), ANONYMOUS, False, False),
    ],
)
def test_a_caller_sees_its_own_and_those_of_teams_that_its_user_administers(
    whose: Whose, principal: Principal, seen: bool, own: bool
) -> None:
    assert (whose.includes(principal), whose.is_own(principal)) == (seen, own)


@given(st.lists(st.tuples(st.floats(0, 100), st.none() | st.integers(0, 100)), max_size=20), st.booleans())
def test_what_tells_no_tokens_is_last_whichever_way_they_are_sorted(
    values: list[tuple[float, int | None]], ascending: bool
) -> None:
    requests = [live_request("r", started=started, tokens=tokens) for started, tokens in values]
    found = in_order(requests, LiveQuery(sort="tokens", ascending=ascending))
    known = [each.tokens for each in found if each.tokens is not None]
    assert known == sorted(known, reverse=not ascending)
    assert [each.tokens for each in found[len(known) :]] == [None] * (len(found) - len(known))
    ages = [each.started for each in in_order(requests, LiveQuery(ascending=ascending))]
    assert ages == sorted(ages, reverse=ascending)


def test_reports_of_several_processes_add_up_and_stay_bounded() -> None:
    many = [(f"model-{number}", 2) for number in range(MOST_NAMES)]
    one = LiveReport(9.0, 10, 5, [live_request("a", started=2.0)], [("queued", 5)], many, [("gpu", 5)], [("k", "1", 5)])
    other = LiveReport(8.0, 3, 3, [live_request("b", started=1.0)], [("queued", 3)], [("most", 3)], [], [("k", "2", 3)])
    found = merged([one, other], LiveQuery(limit=1), ["worker-3"])
    assert (found.at, found.total, found.matching, found.missing) == (8.0, 13, 8, ("worker-3",))
    assert [each.request_id for each in found.requests] == ["b"]
    assert (found.states, found.servers) == ([("queued", 8)], [("gpu", 5)])
    assert (len(found.models), found.models[0]) == (MOST_NAMES, ("most", 3))
    # two keys may have the same name
    assert found.keys == [("k", "1", 5), ("k", "2", 3)]


def test_a_report_passes_between_processes_unchanged() -> None:
    report = LiveReport(1.0, 1, 1, [live_request("é", tokens=None)], [("waiting", 1)], missing=("worker-1",))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=LiveReport) == report
    query = LiveQuery(Whose("k", "u", ("t",)), key="é", sort="tokens")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(query), type=LiveQuery) == query
