from __future__ import annotations

import pytest

from tests.admin.admin_harness import Gateway


def test_a_deleted_key_is_refused_on_the_next_request(gateway: Gateway) -> None:
    made = gateway.make_key()
    assert gateway.post("/key/delete", {"keys": [made["key"]]}).json == {"deleted_keys": [made["key"]]}
    answer = gateway.get("/key/info", key=made["key"])
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert gateway.records() == []


def test_keys_are_deleted_by_hash_by_alias_and_together(gateway: Gateway) -> None:
    one, two, three = gateway.make_key(), gateway.make_key(key_alias="team"), gateway.make_key()
    answer = gateway.post("/key/delete", {"keys": [one["token"], three["key"]], "key_aliases": ["team"]})
    assert answer.json == {"deleted_keys": [one["token"], three["key"], "team"]}
    assert len(gateway.index) == 0
    assert two["token"] not in gateway.index


def test_a_key_that_is_named_twice_is_deleted_once(gateway: Gateway) -> None:
    made = gateway.make_key(key_alias="team")
    body = {"keys": [made["key"], made["token"], made["key"]], "key_aliases": ["team"]}
    assert gateway.post("/key/delete", body).json == {"deleted_keys": [made["key"]]}


def test_a_deleted_key_and_its_alias_can_be_made_again(gateway: Gateway) -> None:
    fields = {"key": "sk-again-0123456789", "key_alias": "team"}
    for _ in range(2):
        gateway.make_key(**fields)
        assert gateway.post("/key/delete", {"key_aliases": ["team"]}).status == 200


def test_an_unknown_key_among_known_ones_deletes_nothing_and_is_counted_not_named(gateway: Gateway) -> None:
    made = gateway.make_key()
    unknown = "sk-unknown-0123456789"
    answer = gateway.post("/key/delete", {"keys": [made["key"], unknown, "0" * 64]})
    assert answer.status == 404
    assert answer.error["message"] == "2 of the 3 keys are not known. Nothing was deleted."
    assert gateway.get("/key/info", key=made["key"]).status == 200


def test_an_unknown_alias_is_named_and_deletes_nothing(gateway: Gateway) -> None:
    made = gateway.make_key(key_alias="team")
    answer = gateway.post("/key/delete", {"keys": [made["key"]], "key_aliases": ["taem"]})
    assert (answer.status, answer.error["param"]) == (404, "key_aliases")
    assert "`taem`" in answer.error["message"]
    assert gateway.get("/key/info", key=made["key"]).status == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "keys"),
        ({"keys": []}, "keys"),
        ({"keys": [], "key_aliases": None}, "keys"),
        ({"keys": "sk-one-key-0123456789"}, "keys"),
        ({"keys": [5]}, "keys[0]"),
        ({"key": ["x"]}, "key"),
        ({"keys": ["sk-x"] * 1001}, "keys"),
    ],
)
def test_a_body_that_names_nothing_to_delete_is_refused(gateway: Gateway, body: dict[str, object], param: str) -> None:
    answer = gateway.post("/key/delete", body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert "sk-one" not in answer.body.decode()
