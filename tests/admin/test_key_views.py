from __future__ import annotations

import pytest

from tests.admin.admin_harness import Gateway


def test_several_keys_are_shown_at_once_without_those_that_are_not_known(gateway: Gateway) -> None:
    one, two = gateway.make_key(key_alias="one"), gateway.make_key(key_alias="two")
    answer = gateway.post("/v2/key/info", {"keys": [two["key"], "sk-unknown-0123456789", one["token"]]})
    assert answer.json["key"] == [two["key"], one["token"]]
    assert [each["key_alias"] for each in answer.json["info"]] == ["two", "one"]
    assert "sk-unknown" not in answer.body.decode()


@pytest.mark.parametrize(("body", "status"), [({}, 400), ({"keys": "x"}, 400), ({"keys": ["sk-unknown"]}, 404)])
def test_none_of_them_known_is_not_found(gateway: Gateway, body: object, status: int) -> None:
    assert gateway.post("/v2/key/info", body).status == status


def test_the_aliases_come_in_their_order_by_page_and_by_what_they_hold(gateway: Gateway) -> None:
    for alias in ("beta", "alpha", None, "gamma"):
        gateway.make_key(key_alias=alias, team_id="x" if alias == "beta" else None)
    answer = gateway.get("/key/aliases?size=2").json
    assert answer == {
        "aliases": ["alpha", "beta"],
        "total_count": 3,
        "current_page": 1,
        "total_pages": 2,
        "size": 2,
    }
    assert gateway.get("/key/aliases?size=2&page=2").json["aliases"] == ["gamma"]
    assert gateway.get("/key/aliases?search=AM").json["aliases"] == ["gamma"]
    assert gateway.get("/key/aliases?team_id=x").json["aliases"] == ["beta"]
    assert gateway.get("/key/aliases?size=101").error["param"] == "size"
    assert gateway.get("/key/aliases?colour=red").error["param"] == "colour"


def test_a_service_account_belongs_to_a_team_and_to_nobody_in_it(gateway: Gateway) -> None:
    answer = gateway.post("/key/service-account/generate", {"key_alias": "ci", "team_id": "x", "metadata": {"a": 1}})
    assert answer.status == 200
    assert (answer.json["team_id"], answer.json["user_id"]) == ("x", None)
    assert answer.json["metadata"] == {"a": 1, "service_account_id": "ci"}
    assert gateway.get("/key/info", key=answer.json["key"]).status == 200
    for body, param in (({"key_alias": "ci"}, "team_id"), ({"team_id": "x", "user_id": "ada"}, "user_id")):
        refused = gateway.post("/key/service-account/generate", body)
        assert (refused.status, refused.error["param"]) == (400, param)
