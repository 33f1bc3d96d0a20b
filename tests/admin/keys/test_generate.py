from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import MASTER_KEY, Gateway
from twisted_vllm.auth.authenticator import hash_key

CUSTOM = "sk-custom-0123456789"


@pytest.mark.parametrize("data", [None, b"", b"  \n", b"{}"])
def test_an_empty_body_makes_a_key(gateway: Gateway, data: bytes | None) -> None:
    answer = gateway.post("/key/generate", data=data)
    assert answer.status == 200
    assert answer.json["key"].startswith("sk-")
    assert answer.headers["cache-control"] == "no-store"


def test_a_key_works_on_the_next_request(gateway: Gateway) -> None:
    made = gateway.make_key()
    answer = gateway.get("/key/info", key=made["key"])
    assert answer.status == 200
    assert answer.json["info"]["token"] == made["token"]


def test_every_key_is_another(gateway: Gateway) -> None:
    assert gateway.make_key()["key"] != gateway.make_key()["key"]


def test_the_answer_has_litellms_fields(gateway: Gateway) -> None:
    made = gateway.make_key(key=CUSTOM, key_alias="team a", duration="30d", models=["qwen*"], metadata={"a": [1]})
    expected = {
        "key": CUSTOM,
        "key_name": "sk-...6789",
        "key_alias": "team a",
        "token": hash_key(CUSTOM),
        "token_id": hash_key(CUSTOM),
        "duration": "30d",
        "expires": "2026-03-31T12:00:00Z",
        "models": ["qwen*"],
        "metadata": {"a": [1]},
        "allowed_routes": [],
        "tags": [],
        "blocked": False,
        "spend": 0.0,
        "max_budget": None,
        "aliases": {},
        "litellm_budget_table": None,
        "user_id": None,
        "team_id": None,
        "created_at": "2026-03-01T12:00:00Z",
        "updated_at": "2026-03-01T12:00:00Z",
        "created_by": "master",
        "updated_by": "master",
    }
    assert {name: made[name] for name in expected} == expected


def test_the_store_keeps_everything_but_the_key(gateway: Gateway) -> None:
    fields: dict[str, Any] = {
        "key_alias": "team",
        "models": ["a", "b"],
        "allowed_routes": ["/v1/chat/completions", "/metrics/*", "inference"],
        "blocked": True,
        "metadata": {"deep": {"er": None}},
        "tags": ["x"],
        "user_id": "ada",
        "team_id": "engines",
    }
    made = gateway.make_key(key=CUSTOM, **fields)
    [record] = gateway.records()
    assert CUSTOM not in repr(record)
    assert {name: made[name] for name in fields} == fields
    assert (record.models, record.tags, record.metadata) == (("a", "b"), ("x",), {"deep": {"er": None}})
    assert (record.blocked, record.user_id, record.team_id) == (True, "ada", "engines")


@pytest.mark.parametrize("models", [["all-proxy-models"], ["a", "all-proxy-models"], [], None])
def test_all_proxy_models_is_every_model(gateway: Gateway, models: list[str] | None) -> None:
    assert gateway.make_key(models=models)["models"] == []


@pytest.mark.parametrize("model", ["all-team-models", "no-default-models"])
def test_special_models_that_mean_nothing_here_are_refused(gateway: Gateway, model: str) -> None:
    error = gateway.post("/key/generate", {"models": [model]}).error
    assert (error["code"], error["param"]) == ("invalid_request", "models")
    assert model in error["message"]


def test_all_team_models_of_a_key_of_a_team_is_an_empty_list(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x", "models": ["qwen*"]})
    made = gateway.make_key(team_id="x", models=["all-team-models"])
    assert made["models"] == []
    change = {"key": made["key"], "models": ["all-team-models"]}
    assert gateway.post("/key/update", change).json["models"] == []
    assert "for keys of a team" in gateway.post("/key/update", {**change, "team_id": None}).error["message"]


@pytest.mark.parametrize("duration", [None, -1, "-1"])
def test_a_key_without_a_duration_never_expires(gateway: Gateway, duration: object) -> None:
    made = gateway.make_key(duration=duration)
    assert made["expires"] is None
    gateway.clock.advance(10**9)
    assert gateway.get("/key/info", key=made["key"]).status == 200


def test_a_key_stops_working_when_it_expires(gateway: Gateway) -> None:
    made = gateway.make_key(duration="30s")
    gateway.clock.advance(29)
    assert gateway.get("/key/info", key=made["key"]).status == 200
    gateway.clock.advance(1)
    answer = gateway.get("/key/info", key=made["key"])
    assert (answer.status, answer.error["code"]) == (401, "expired_api_key")


def test_a_key_can_be_made_blocked(gateway: Gateway) -> None:
    made = gateway.make_key(blocked=True)
    answer = gateway.get("/key/info", key=made["key"])
    assert (answer.status, answer.error["code"]) == (401, "blocked_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "key",
    [
        "sk-short",
        "sk-123456789012",
        "no-prefix-0123456789",
        "sk-with space 0123456",
        "sk-ümlaut-0123456789",
        "sk-" + "x" * 510,
        "",
    ],
)
def test_a_custom_key_must_be_fit_for_a_header(gateway: Gateway, key: str) -> None:
    answer = gateway.post("/key/generate", {"key": key})
    assert (answer.status, answer.error["param"]) == (400, "key")
    assert not key or key not in answer.body.decode()
    assert len(gateway.index) == 0


def test_the_shortest_custom_key_is_taken(gateway: Gateway) -> None:
    assert gateway.make_key(key="sk-1234567890123")["key"] == "sk-1234567890123"


def test_the_same_key_twice_is_a_conflict_and_leaves_the_first_alone(gateway: Gateway) -> None:
    gateway.make_key(key=CUSTOM, user_id="first")
    answer = gateway.post("/key/generate", {"key": CUSTOM, "user_id": "second"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (409, "conflict", "key")
    assert gateway.get(f"/key/info?key={CUSTOM}").json["info"]["user_id"] == "first"


def test_an_alias_twice_is_a_conflict(gateway: Gateway) -> None:
    gateway.make_key(key_alias="team")
    answer = gateway.post("/key/generate", {"key_alias": "team"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (409, "conflict", "key_alias")
    assert len(gateway.index) == 1


def test_the_master_key_cannot_be_made_a_virtual_key(gateway: Gateway) -> None:
    answer = gateway.post("/key/generate", {"key": MASTER_KEY})
    assert answer.status == 409
    assert MASTER_KEY not in answer.body.decode()


@pytest.mark.parametrize(
    "fields",
    [
        {"spend": 0, "key_type": "default", "config": {}, "guardrails": [], "auto_rotate": False},
        {"max_budget": None, "rpm_limit": None, "tpm_limit": None, "budget_id": "", "send_invite_email": False},
        {"key": None, "key_alias": None, "blocked": None, "metadata": None, "tags": None, "user_id": None},
    ],
)
def test_litellms_fields_that_ask_for_nothing_are_taken(gateway: Gateway, fields: dict[str, object]) -> None:
    assert gateway.make_key(**fields)["key"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget_limits", [{"max_budget": 1}]),
        ("tpd_limit", 0),
        ("spend", True),
        ("guardrails", ["x"]),
        ("auto_rotate", True),
    ],
)
def test_a_field_of_litellms_that_is_not_supported_is_named(gateway: Gateway, name: str, value: object) -> None:
    answer = gateway.post("/key/generate", {name: value})
    assert (answer.status, answer.error["param"]) == (400, name)
    assert f"`{name}`" in answer.error["message"]
    assert len(gateway.index) == 0


def test_a_misspelt_field_is_refused_with_the_nearest_name(gateway: Gateway) -> None:
    answer = gateway.post("/key/generate", {"key_alais": "x"})
    assert (answer.status, answer.error["param"]) == (400, "key_alais")
    assert "Did you mean `key_alias`?" in answer.error["message"]


def test_a_key_in_the_place_of_a_field_does_not_come_back(gateway: Gateway) -> None:
    answer = gateway.post("/key/generate", {CUSTOM: True})
    assert answer.status == 400
    assert CUSTOM not in answer.body.decode()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"models": "a"}, "models"),
        ({"models": ["a", 5]}, "models[1]"),
        ({"models": [""]}, "models[0]"),
        ({"models": ["a\nb"]}, "models[0]"),
        ({"metadata": []}, "metadata"),
        ({"blocked": "yes"}, "blocked"),
        ({"key_alias": 5}, "key_alias"),
        ({"key_alias": ""}, "key_alias"),
        ({"key_alias": "x" * 256}, "key_alias"),
        ({"key_alias": "a\u0000b"}, "key_alias"),
        ({"key_alias": CUSTOM}, "key_alias"),
        ({"user_id": "line\nbreak"}, "user_id"),
        ({"tags": [["x"]]}, "tags[0]"),
        ({"duration": "soon"}, "duration"),
        ({"duration": 30}, "duration"),
        ({"duration": 1.5}, "duration"),
        ({"key": 5}, "key"),
        ({"allowed_routes": ["nonsense"]}, "allowed_routes"),
        ({"allowed_routes": ["/v1/*/x"]}, "allowed_routes"),
    ],
)
def test_an_ill_formed_field_is_named_by_its_path(gateway: Gateway, body: dict[str, object], param: str) -> None:
    answer = gateway.post("/key/generate", body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_request", param)
    assert CUSTOM not in answer.body.decode()
    assert len(gateway.index) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"null",
        b"5",
        b"{'a': 1}",
        b"\xff\xfe",
        b'{"a": "\xff"}',
        b'{"metadata": ' + b"[" * 5000,
        b'{"key_alias": "\\ud800"}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(gateway: Gateway, data: bytes) -> None:
    answer = gateway.post("/key/generate", data=data)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")


def test_metadata_may_be_nested_but_not_without_end(gateway: Gateway) -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {"metadata": {"a": nested(levels - 1)["metadata"]}} if levels > 1 else {"metadata": {}}

    assert gateway.post("/key/generate", nested(32)).status == 200
    assert gateway.post("/key/generate", nested(34)).error["param"] == "metadata"


@pytest.mark.parametrize("number", ["12345678901234567890123456789", "-9223372036854775809", "1e300", "0.1"])
def test_metadata_may_hold_any_number_that_json_can_write(gateway: Gateway, number: str) -> None:
    answer = gateway.post("/key/generate", data=f'{{"metadata": {{"n": {number}}}}}'.encode())
    assert answer.status == 200
    assert answer.json["metadata"]["n"] == pytest.approx(float(number))


def test_a_gateway_without_a_master_key_lets_everyone_make_keys() -> None:
    answer = Gateway(master_key=None).post("/key/generate", {}, key=None)
    assert (answer.status, answer.json["created_by"]) == (200, "anonymous")


def test_a_service_account_belongs_to_a_team_and_to_nobody_in_it(gateway: Gateway) -> None:
    answer = gateway.post("/key/service-account/generate", {"key_alias": "ci", "team_id": "x", "metadata": {"a": 1}})
    assert answer.status == 200
    assert (answer.json["team_id"], answer.json["user_id"]) == ("x", None)
    assert answer.json["metadata"] == {"a": 1, "service_account_id": "ci"}
    assert gateway.get("/key/info", key=answer.json["key"]).status == 200
    for body, param in (({"key_alias": "ci"}, "team_id"), ({"team_id": "x", "user_id": "ada"}, "user_id")):
        refused = gateway.post("/key/service-account/generate", body)
        assert (refused.status, refused.error["param"]) == (400, param)


def test_the_interval_of_a_rotation_that_is_not_asked_for_asks_for_nothing(gateway: Gateway) -> None:
    assert gateway.post("/key/generate", {"auto_rotate": False, "rotation_interval": "30d"}).status == 200
    for body in ({"rotation_interval": "30d"}, {"auto_rotate": None, "rotation_interval": "30d"}):
        refused = gateway.post("/key/generate", body)
        assert (refused.status, refused.error["param"]) == (400, "rotation_interval")
    refused = gateway.post("/key/generate", {"auto_rotate": True, "rotation_interval": "30d"})
    assert (refused.status, refused.error["param"]) == (400, "auto_rotate")
