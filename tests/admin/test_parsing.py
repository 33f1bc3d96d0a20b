"""What the bodies of the admin API are held to, whichever route they come by."""

from __future__ import annotations

import pytest

from tests.admin.admin_harness import Gateway


@pytest.mark.parametrize("member", ["user_id", "user_email"])
@pytest.mark.parametrize("text", ["a\n@b", "a\x9b@b", "a\u202e@b", "a\u2028@b", "a\u00a0@b"])
def test_a_member_cannot_carry_characters_that_forge_log_lines(gateway: Gateway, member: str, text: str) -> None:
    gateway.post("/team/new", {"team_id": "x"})
    answer = gateway.post("/team/member_add", {"team_id": "x", "member": {member: text}})
    assert (answer.status, answer.error["param"]) == (400, f"member.{member}")
    answer = gateway.post("/team/new", {"members_with_roles": [{}, {member: text}]})
    assert (answer.status, answer.error["param"]) == (400, f"members_with_roles[1].{member}")


def test_a_member_is_held_to_what_users_are(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x"})
    for member, param in (({"user_id": "sk-0123456789abcdef"}, "user_id"), ({"user_email": "nobody"}, "user_email")):
        answer = gateway.post("/team/member_add", {"team_id": "x", "member": member})
        assert (answer.status, answer.error["param"]) == (400, f"member.{param}")
        answer = gateway.post("/team/new", {"members_with_roles": [member]})
        assert (answer.status, answer.error["param"]) == (400, f"member.{param}")


@pytest.mark.parametrize(
    ("name", "place", "hint"),
    [
        ("user_mail", "members_with_roles[0].user_mail", " Did you mean `user_email`?"),
        ("zzz", "members_with_roles[0].zzz", ""),
        ("sk-0123456789abcdef", "members_with_roles[0].…", ""),
    ],
)
def test_a_field_within_a_field_that_is_not_known_is_named_with_the_nearest(
    gateway: Gateway, name: str, place: str, hint: str
) -> None:
    answer = gateway.post("/team/new", {"members_with_roles": [{"user_id": "ada", name: 1}]})
    assert (answer.status, answer.error["param"]) == (400, place)
    assert answer.error["message"] == f"`{place}` is not a known field.{hint}"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/key/generate", {"max_budget": "ten"}, "`max_budget` must be a number or null, and not a text."),
        ("/key/generate", {"blocked": 1}, "`blocked` must be true or false or null, and not a whole number."),
        ("/key/generate", {"models": {}}, "`models` must be a list or null, and not an object."),
        (
            "/key/generate",
            {"key_type": "admin"},
            "`key_type` must be one of default, llm_api, management, read_only.",
        ),
        (
            "/team/new",
            {"members_with_roles": [{"user_id": "ada", "role": "boss"}]},
            "`members_with_roles[0].role` must be one of admin, user.",
        ),
    ],
)
def test_a_value_of_another_kind_is_told_what_it_must_be(
    gateway: Gateway, path: str, body: dict[str, object], message: str
) -> None:
    assert gateway.post(path, body).error["message"] == message


def test_a_parameter_that_is_too_large_is_told_the_bound(gateway: Gateway) -> None:
    assert gateway.get("/key/list?size=101").error["message"] == "`size` must be at most 100."


def test_a_number_without_a_fraction_is_whole(gateway: Gateway) -> None:
    assert gateway.make_key(priority=7.0)["priority"] == 7
    assert gateway.post("/key/generate", {"priority": 7.5}).error["param"] == "priority"
    assert gateway.make_key(metadata={"price": 7.0})["metadata"] == {"price": 7.0}


@pytest.mark.parametrize("alias", ["Zoë", "日本", "\U0001fae8", "\U0001cc00", "a b"])
def test_a_name_may_be_in_any_writing_however_new(gateway: Gateway, alias: str) -> None:
    assert gateway.make_key(key_alias=alias)["key_alias"] == alias


@pytest.mark.parametrize("query", ["page=1.0", "page=1e1", "page=%2B1", "page=0", "page=9999999999", "page_size=101"])
def test_a_page_is_a_whole_number_in_digits(gateway: Gateway, query: str) -> None:
    answer = gateway.get(f"/user/list?{query}")
    assert (answer.status, answer.error["param"]) == (400, query.partition("=")[0])


def test_the_master_key_is_told_to_name_a_user(gateway: Gateway) -> None:
    answer = gateway.get("/user/info")
    assert (answer.status, answer.error["param"]) == (404, "user_id")
