from __future__ import annotations

import pytest

from tests.admin.admin_harness import MASTER_KEY, Gateway


def test_the_administrator_sees_a_key_by_itself_or_by_its_hash(gateway: Gateway) -> None:
    made = gateway.make_key(user_id="ada")
    for name in (made["key"], made["token"], made["token"].upper()):
        answer = gateway.get(f"/key/info?key={name}").json
        assert answer["key"] == name
        assert (answer["info"]["token"], answer["info"]["user_id"]) == (made["token"], "ada")
        assert "key" not in answer["info"]


def test_a_key_sees_itself_with_and_without_naming_itself(gateway: Gateway) -> None:
    made = gateway.make_key()
    for path in ("/key/info", "/key/info?key=", f"/key/info?key={made['key']}", f"/key/info?key={made['token']}"):
        assert gateway.get(path, key=made["key"]).json["info"]["token"] == made["token"]


def test_the_callers_own_key_is_answered_by_its_hash(gateway: Gateway) -> None:
    made = gateway.make_key()
    answer = gateway.get("/key/info", key=made["key"])
    assert answer.json["key"] == made["token"]
    assert made["key"] not in answer.body.decode()


@pytest.mark.parametrize("other", ["sk-unknown-0123456789", "0" * 64, MASTER_KEY])
def test_a_key_does_not_see_others_nor_whether_they_exist(gateway: Gateway, other: str) -> None:
    mine, theirs = gateway.make_key(), gateway.make_key()
    refusals = [
        gateway.get(f"/key/info?key={name}", key=mine["key"]) for name in (other, theirs["key"], theirs["token"])
    ]
    assert {answer.status for answer in refusals} == {403}
    assert len({answer.body for answer in refusals}) == 1


@pytest.mark.parametrize("other", ["sk-unknown-0123456789", "0" * 64, MASTER_KEY])
def test_a_key_that_is_not_known_is_not_found_and_not_repeated(gateway: Gateway, other: str) -> None:
    answer = gateway.get(f"/key/info?key={other}")
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert other not in answer.body.decode()


def test_the_master_key_must_name_a_key(gateway: Gateway) -> None:
    answer = gateway.get("/key/info")
    assert (answer.status, answer.error["param"]) == (404, "key")


@pytest.mark.parametrize("query", ["?kye=x", "?key=a&key=b", "?key=%ff", "?" + "&".join(f"k{n}" for n in range(200))])
def test_a_query_that_cannot_be_meant_is_refused(gateway: Gateway, query: str) -> None:
    assert gateway.get(f"/key/info{query}").error["code"] == "invalid_request"


def test_the_status_tells_what_became_of_the_key(gateway: Gateway) -> None:
    made = {
        "active": gateway.make_key(),
        "expired": gateway.make_key(duration="1s"),
        "revoked": gateway.make_key(blocked=True),
    }
    gateway.clock.advance(1)
    for status, key in made.items():
        assert gateway.get(f"/key/info?key={key['token']}").json["info"]["status"] == status


def test_several_keys_are_shown_at_once_without_those_that_are_not_known(gateway: Gateway) -> None:
    one, two = gateway.make_key(key_alias="one"), gateway.make_key(key_alias="two")
    answer = gateway.post("/v2/key/info", {"keys": [two["key"], "sk-unknown-0123456789", one["token"]]})
    assert answer.json["key"] == [two["key"], one["token"]]
    assert [each["key_alias"] for each in answer.json["info"]] == ["two", "one"]
    assert "sk-unknown" not in answer.body.decode()


@pytest.mark.parametrize(("body", "status"), [({}, 400), ({"keys": "x"}, 400), ({"keys": ["sk-unknown"]}, 404)])
def test_none_of_them_known_is_not_found(gateway: Gateway, body: object, status: int) -> None:
    assert gateway.post("/v2/key/info", body).status == status
