"""Limits of one model that would never count are refused, with the name that would."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.admin.admin_harness import Gateway
from twisted_vllm.admin.model_limits import check_limited_models
from twisted_vllm.errors import InvalidRequest

KEY = "sk-custom-0123456789"
FIELDS = ["model_rpm_limit", "model_tpm_limit"]
#: the requests that take limits, and what names their subject
TAKERS: dict[str, dict[str, Any]] = {
    "/key/generate": {},
    "/key/update": {"key": KEY},
    "/key/regenerate": {"key": KEY},
    "/key/service-account/generate": {"team_id": "lab"},
    "/user/new": {"user_id": "bob"},
    "/user/update": {"user_id": "ada"},
    "/team/new": {"team_id": "new"},
    "/team/update": {"team_id": "lab"},
    "/customer/new": {"user_id": "new"},
    "/customer/update": {"user_id": "eve"},
}


@pytest.fixture
def peopled(gateway: Gateway) -> Gateway:
    """A gateway with a key of a user and a team, and a customer."""
    for path, body in (
        ("/user/new", {"user_id": "ada", "auto_create_key": False}),
        ("/team/new", {"team_id": "lab"}),
        ("/customer/new", {"user_id": "eve"}),
    ):
        assert gateway.post(path, body).status == 200
    gateway.make_key(key=KEY, user_id="ada", team_id="lab")
    return gateway


def refusal(gateway: Gateway, path: str, body: dict[str, Any]) -> tuple[str, str]:
    """Return the field and the message of a request that must be refused."""
    answer = gateway.post(path, body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request"), answer.body
    return answer.error["param"], answer.error["message"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("goo*", "wildcard"),
        ("*", "wildcard"),
        ("go?d", "wildcard"),
        ("good/../secret", "dot segment"),
        ("..", "dot segment"),
        ("./good", "dot segment"),
        ("good/.", "dot segment"),
        ("go\0d", "cannot be printed"),
        ("good\n", "cannot be printed"),
        ("go\u202ed", "cannot be printed"),
    ],
)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("path", TAKERS)
def test_a_limit_names_one_model(peopled: Gateway, path: str, field: str, name: str, why: str) -> None:
    param, message = refusal(peopled, path, {**TAKERS[path], field: {"good": 1, name: 2}})
    assert param == field
    assert why in message


def test_a_wildcard_in_one_update_of_many_fails_alone(peopled: Gateway) -> None:
    answer = peopled.post("/key/bulk_update", {"keys": [{"key": KEY, "model_rpm_limit": {"goo*": 1}}]}).json
    assert "wildcard" in answer["failed_updates"][0]["failed_reason"]


@pytest.mark.parametrize("name", ["good", "org/good", "/models/good", "good.v1", "..good", "a/b..", "[good]", "gute:1"])
def test_a_models_own_name_is_taken(gateway: Gateway, name: str) -> None:
    assert gateway.make_key(model_rpm_limit={name: 1})["model_rpm_limit"] == {name: 1}


@given(st.text(st.sampled_from("a./*?\\\n"), min_size=1, max_size=8))
def test_a_name_is_taken_if_it_has_no_wildcard_and_no_dot_segment(name: str) -> None:
    clean = not set(name) & set("*?\n") and not {".", ".."} & set(name.split("/"))
    try:
        check_limited_models([name], "model_rpm_limit")
    except InvalidRequest:
        assert not clean
    else:
        assert clean


@pytest.mark.parametrize("field", FIELDS)
def test_a_limit_on_a_keys_own_name_is_refused_with_the_model_to_write(gateway: Gateway, field: str) -> None:
    body = {"aliases": {"fast": "good"}, field: {"fast": 5}}
    assert refusal(gateway, "/key/generate", body) == (
        field,
        f"`{field}`: `fast` is this key's own name (`aliases`) for `good`, and a limit counts the model: write `good`.",
    )
    assert gateway.make_key(aliases={"fast": "good"}, **{field: {"good": 5}})[field] == {"good": 5}


@pytest.mark.parametrize(
    ("before", "update"),
    [
        ({"aliases": {"fast": "good"}}, {"model_rpm_limit": {"fast": 5}}),
        ({"model_rpm_limit": {"fast": 5}}, {"aliases": {"fast": "good"}}),
    ],
    ids=["the limit comes later", "the alias comes later"],
)
@pytest.mark.parametrize("path", ["/key/update", "/key/regenerate"])
def test_an_update_that_makes_such_a_limit_is_refused(
    gateway: Gateway, path: str, before: dict[str, Any], update: dict[str, Any]
) -> None:
    gateway.make_key(key=KEY, **before)
    param, message = refusal(gateway, path, {"key": KEY, **update})
    assert (param, "write `good`" in message) == ("model_rpm_limit", True)
    report = gateway.get(f"/key/info?key={KEY}").json["info"]
    assert {name: report[name] for name in before} == before


def test_a_name_that_another_alias_stands_for_counts(gateway: Gateway) -> None:
    made = gateway.make_key(aliases={"gpt-4": "good", "good": "better"}, model_rpm_limit={"good": 5})
    assert made["model_rpm_limit"] == {"good": 5}


def test_a_key_with_an_alias_is_blocked_and_renamed_as_any_other(gateway: Gateway) -> None:
    gateway.make_key(key=KEY, aliases={"fast": "good"}, model_rpm_limit={"good": 5})
    assert gateway.post("/key/block", {"key": KEY}).status == 200
    assert gateway.post("/key/update", {"key": KEY, "key_alias": "x"}).status == 200


@pytest.mark.parametrize(("holder", "named"), [("user", {"user_id": "ada"}), ("team", {"team_id": "lab"})])
def test_the_limits_of_a_user_or_team_and_a_keys_aliases_are_checked_together(
    peopled: Gateway, holder: str, named: dict[str, str]
) -> None:
    limit = {"model_rpm_limit": {"fast": 5}}
    assert peopled.post(f"/{holder}/update", {**named, **limit}).status == 200
    param, message = refusal(peopled, "/key/update", {"key": KEY, "aliases": {"fast": "good"}})
    assert param == "aliases"
    assert f"the key's {holder} has a `model_rpm_limit` for `fast`" in message
    assert "limit `good` there" in message

    assert refusal(peopled, "/key/generate", {**named, "aliases": {"fast": "good"}})[0] == "aliases"
    # a key that moves to them
    key = peopled.make_key(aliases={"fast": "good"})["key"]
    assert refusal(peopled, "/key/update", {"key": key, **named})[0] == "aliases"


@pytest.mark.parametrize(("holder", "named"), [("user", {"user_id": "ada"}), ("team", {"team_id": "lab"})])
def test_a_limit_of_a_user_or_team_on_a_name_of_one_of_its_keys_is_refused(
    peopled: Gateway, holder: str, named: dict[str, str]
) -> None:
    assert peopled.post("/key/update", {"key": KEY, "aliases": {"fast": "good"}, "key_alias": "app"}).status == 200
    param, message = refusal(peopled, f"/{holder}/update", {**named, "model_tpm_limit": {"fast": 5}})
    assert param == "model_tpm_limit"
    assert "the own name (`aliases`) of the key `app` for `good`" in message
    assert message.endswith("write `good`.")


@pytest.mark.parametrize(("holder", "label"), [("user", "user_id"), ("team", "team_id")])
def test_a_user_or_team_that_is_made_after_its_keys_is_checked(gateway: Gateway, holder: str, label: str) -> None:
    gateway.make_key(aliases={"fast": "good"}, **{label: "later"})
    param, _ = refusal(gateway, f"/{holder}/new", {label: "later", "model_rpm_limit": {"fast": 5}})
    assert param == "model_rpm_limit"
