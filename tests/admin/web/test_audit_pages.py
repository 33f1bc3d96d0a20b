"""The pages of the audit log: sentences, and what differs."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest

from tests.admin.admin_harness import MASTER_KEY
from tests.admin.web.web_harness import ConsoleGateway, words
from twisted_vllm.admin.web.pages.audit import Change, changes_of, in_words


@pytest.fixture
def gateway() -> ConsoleGateway:
    gateway = ConsoleGateway()
    assert gateway.post("/team/new", {"team_id": "red", "team_alias": "<b>Red</b>", "max_budget": 10}).status == 200
    assert gateway.post("/team/update", {"team_id": "red", "max_budget": 20}).status == 200
    return gateway


def links(body: bytes) -> list[str]:
    return [unescape(each) for each in re.findall(r'href="(/ui/audit/[^"]*)"', body.decode())]


def test_changes_are_told_in_words_and_lead_to_what_differs(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    answer = browser.get("/ui/audit?object_type=team&object_id=red")
    assert "master changed max_budget of the team <b>Red</b> (red)" in words(answer)
    assert "master created the team <b>Red</b> (red)" in words(answer)
    changed, created = links(answer.body)
    entry = browser.get(changed)
    assert re.search("max_budget changed 10.* 20", words(entry))
    assert b"<b>Red</b>" not in browser.get(created).body
    assert "<b>Red</b>" in words(browser.get(created))


def test_the_list_is_walked_from_newest_to_oldest(gateway: ConsoleGateway) -> None:
    for number in range(60):
        assert gateway.post("/team/update", {"team_id": "red", "max_budget": number}).status == 200
    browser = gateway.browser(MASTER_KEY)
    first = browser.get("/ui/audit?action=team/update")
    assert len(links(first.body)) == 50
    following = re.search(r'href="([^"]*)" rel="next"', first.body.decode())
    assert following is not None
    second = browser.get(unescape(following[1]))
    assert len(links(second.body)) == 11
    assert not set(links(first.body)) & set(links(second.body))
    assert "Newest" in words(second)


@pytest.mark.parametrize("query", ["", "?at=yesterday", "?at=2026-03-01T12:00:00Z", "?at=9999-12-31T23:59:59.999999Z"])
def test_an_entry_that_is_not_there_is_not_found(gateway: ConsoleGateway, query: str) -> None:
    browser = gateway.browser(MASTER_KEY)
    for id in ("999999", "x"):
        assert browser.get(f"/ui/audit/{id}{query}").status == 404


def test_members_see_none_of_it(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(gateway.make_key(user_id="ada")["key"])
    assert browser.get("/ui/audit").status == 403
    assert "/ui/audit" not in browser.get("/ui").body.decode()


def test_what_differs_is_named_down_to_the_member() -> None:
    before = {"a": 1, "same": 2, "metadata": {"note": "x", "kept": 1}, "models": ["m"], "gone": "g", "updated_at": "1"}
    after = {"a": 2, "same": 2, "metadata": {"note": "y", "kept": 1}, "models": ["m", "n"], "new": 0, "updated_at": "2"}
    assert changes_of(before, after) == [
        Change("a", "changed", "1", "2"),
        Change("gone", "removed", "g", ""),
        Change("metadata.note", "changed", "x", "y"),
        Change("models", "changed", "m", "m, n"),
        Change("new", "added", "", "0"),
        Change("updated_at", "changed", "1", "2"),
    ]
    assert changes_of(None, {"a": None, "b": [], "c": {}}) == []


@pytest.mark.parametrize(
    ("action", "kind", "id", "after", "sentence"),
    [
        ("server/drain", "server", "http://gpu-1", {"reason": "x"}, "boss drained the server http://gpu-1"),
        ("key/block", "key", "0123abcd", {"key_alias": "web"}, "boss blocked the key web (0123abcd)"),
        ("key/generate", "key", "0123abcd", {"key_alias": "web"}, "boss created the key web (0123abcd)"),
        ("key/generate", "key", "0123abcd", {"key_alias": None}, "boss created the key 0123abcd"),
        ("config/reload", "configuration", "", None, "boss reloaded the configuration"),
    ],
)
def test_acts_have_verbs_and_records_their_names(action: str, kind: str, id: str, after: Any, sentence: str) -> None:
    entry = {"actor": "0123abcd", "actor_name": "boss", "action": action, "object_type": kind, "object_id": id}
    assert in_words({**entry, "before": None, "after": after}) == sentence


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (None, {"a": 1}, "boss created the end user eve"),
        ({"a": 1}, None, "boss deleted the end user eve"),
        (None, None, "boss called customer/x for the end user eve"),
        ({"a": 1}, {"a": 1}, "boss changed nothing of the end user eve"),
        ({}, dict.fromkeys("abcdef", 1), "boss changed a, b, c, d and 2 more of the end user eve"),
    ],
)
def test_a_change_is_a_sentence(before: Any, after: Any, sentence: str) -> None:
    entry = {"actor": "0123abcd", "actor_name": "boss", "action": "customer/x", "object_type": "end_user"}
    assert in_words({**entry, "object_id": "eve", "before": before, "after": after}) == sentence
