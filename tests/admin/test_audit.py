"""Every administrative act leaves one row that says who did what, and names no key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.admin.admin_harness import MASTER_KEY, Gateway
from twisted_vllm.auth.authenticator import hash_key

KEY = "sk-custom-0123456789"


def entries(gateway: Gateway, query: str = "") -> list[Any]:
    answer = gateway.get(f"/audit/list?sort_order=asc{query}")
    assert answer.status == 200, answer.body
    found: list[Any] = answer.json["audit_logs"]
    return found


def test_each_act_is_written_down_with_what_it_changed(gateway: Gateway) -> None:
    made = gateway.make_key(key=KEY, key_alias="team", tags=["a"])
    gateway.clock.advance(1)
    gateway.post("/key/update", {"key": KEY, "tags": ["b"]})
    gateway.post("/key/block", {"key": KEY})
    new = gateway.post("/key/regenerate", {"key": KEY}).json
    gateway.post("/key/delete", {"keys": [new["key"]]})
    found = entries(gateway)
    assert [(each["action"], each["object_type"], each["object_id"]) for each in found] == [
        ("key/generate", "key", made["token"][:8]),
        ("key/update", "key", made["token"][:8]),
        ("key/block", "key", made["token"][:8]),
        ("key/regenerate", "key", new["token"][:8]),
        ("key/delete", "key", new["token"][:8]),
    ]
    first, second = found[:2]
    assert first["before"] is None
    assert (first["after"]["key_alias"], first["after"]["token_prefix"]) == ("team", made["token"][:8])
    assert (second["before"]["tags"], second["after"]["tags"]) == (["a"], ["b"])
    assert (second["at"], second["actor"], second["actor_name"]) == ("2026-03-01T12:00:01Z", "master", "master")
    assert second["client"] not in ("", "-")
    assert [each["request_id"] for each in found] == [f"request-{number}" for number in range(5)]
    assert entries(gateway, "&request_id=request-2") == [found[2]]
    assert found[3]["before"]["token_prefix"] == made["token"][:8]
    assert found[4]["after"] is None


def test_a_key_that_administers_acts_in_its_own_name(gateway: Gateway) -> None:
    manager = gateway.make_key(key_alias="manager", allowed_routes=["management"])
    gateway.post("/key/generate", {}, manager["key"])
    assert [(each["actor"], each["actor_name"]) for each in entries(gateway)] == [
        ("master", "master"),
        (manager["token"][:8], "manager"),
    ]
    for actor in (manager["token"][:8], manager["token"], manager["key"]):
        assert len(entries(gateway, f"&actor={actor}")) == 1


def test_an_act_on_several_things_leaves_a_row_for_each(gateway: Gateway) -> None:
    gateway.post("/user/new", {"user_id": "ada", "key_alias": "first"})
    gateway.post("/team/new", {"team_id": "x", "members_with_roles": [{"user_id": "ada"}]})
    gateway.post("/user/delete", {"user_ids": ["ada"]})
    assert [(each["action"], each["object_type"]) for each in entries(gateway)] == [
        ("user/new", "key"),
        ("user/new", "user"),
        ("team/new", "team"),
        ("team/new", "team"),
        ("user/delete", "key"),
        ("user/delete", "user"),
    ]
    [change] = [each for each in entries(gateway, "&object_id=x") if each["before"] is not None]
    assert (change["before"], change["after"]) == ({"members": {}}, {"members": {"ada": "user"}})


def test_what_was_refused_or_only_looked_at_leaves_nothing(gateway: Gateway) -> None:
    gateway.make_key(key=KEY)
    gateway.post("/key/generate", {"key": KEY})
    gateway.post("/key/update", {"key": "sk-unknown-0123456789"})
    gateway.post("/key/generate", {}, KEY)
    gateway.get("/key/list")
    assert len(entries(gateway)) == 1


def test_no_key_or_hash_stands_in_the_audit(gateway: Gateway) -> None:
    other = "sk-somebody-s-key-0123456789"
    gateway.make_key(key=KEY, metadata={"note": f"was {other}", hash_key(other): [hash_key(KEY)]}, tags=[other])
    gateway.post("/key/regenerate", {"key": KEY, "new_key": "sk-another-0123456789"})
    gateway.post("/key/delete", {"keys": ["sk-another-0123456789"]})
    text = json.dumps(entries(gateway))
    for secret in (KEY, other, "sk-another-0123456789", MASTER_KEY):
        assert secret not in text
        assert hash_key(secret)[:9] not in text
        assert hash_key(secret)[9:32] not in text


def test_the_audit_is_read_by_page_filter_and_time(gateway: Gateway) -> None:
    for number in range(3):
        gateway.make_key(key_alias=f"k{number}")
        gateway.clock.advance(86_400)
    gateway.post("/key/block", {"key_alias": "k1"})
    newest = gateway.get("/audit/list?page_size=3").json
    assert [each["action"] for each in newest["audit_logs"]] == ["key/block", "key/generate", "key/generate"]
    assert (newest["total"], newest["page"], newest["page_size"], newest["total_pages"]) == (4, 1, 3, 2)
    assert len(entries(gateway, "&action=key/block")) == 1
    assert len(entries(gateway, "&object_type=user")) == 0
    assert len(entries(gateway, "&start_date=2026-03-02&end_date=2026-03-03")) == 2
    assert len(entries(gateway, "&start_date=2026-03-02T12:00:00Z&end_date=2026-03-03T12:00:00Z")) == 1
    assert len(entries(gateway, "&end_date=2026-03-01")) == 1


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start_date=soon", "start_date"),
        ("end_date=9999-12-31", "end_date"),
        ("page=0", "page"),
        ("page_size=1000", "page_size"),
        ("colour=red", "colour"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(gateway: Gateway, query: str, param: str) -> None:
    answer = gateway.get(f"/audit/list?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


def test_litellms_audit_shows_the_same_changes(gateway: Gateway) -> None:
    made = gateway.make_key(key_alias="one")
    gateway.post("/key/block", {"key": made["key"]})
    gateway.post("/key/delete", {"keys": [made["key"]]})
    gateway.post("/team/new", {"team_id": "x"})
    page = gateway.get("/audit").json
    assert (page["total"], page["page_size"], page["total_pages"]) == (4, 10, 1)
    seen = [(each["action"], each["table_name"], each["object_id"]) for each in page["audit_logs"]]
    keys = "LiteLLM_VerificationToken"
    assert seen == [
        ("created", "LiteLLM_TeamTable", "x"),
        *((action, keys, made["token"][:8]) for action in ("deleted", "updated", "created")),
    ]
    assert page["audit_logs"][0]["updated_values"]["team_id"] == "x"
    assert {each["changed_by_api_key"] for each in page["audit_logs"]} == {"master"}
    for query, number in (
        (f"object_id={made['key']}", 3),
        (f"table_name={keys}&page_size=2", 2),
        ("table_name=Unknown", 0),
        ("changed_by=master&changed_by_api_key=master", 4),
        ("start_date=2026-03-02", 0),
    ):
        assert len(gateway.get(f"/audit?{query}").json["audit_logs"]) == number, query
    assert gateway.get("/audit?action=created").error["param"] == "action"
