"""Who the caller with a valid token is, by LiteLLM's settings of the claims."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.auth.token_claims import LONGEST_NAME, MOST_TEAMS, TokenCaller, caller_of, claim, scopes_of
from twisted_vllm.config.jwt import JwtClaims
from twisted_vllm.errors import GatewayError, InvalidToken, TokenNotAllowed


def caller(claims: dict[str, Any] | None = None, **settings: Any) -> TokenCaller:
    return caller_of({"iss": "https://issuer", "sub": "ada", **(claims or {})}, JwtClaims(**settings))


def refusal(claims: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(TokenNotAllowed) as raised:
        caller(claims, **settings)
    return raised.value.message


def test_a_caller_has_the_same_id_in_all_its_tokens_and_another_than_everybody_else() -> None:
    assert caller({"jti": "1"}).key_id == caller({"jti": "2"}).key_id
    others = [
        caller(),
        caller({"sub": "bob"}),
        caller({"iss": "https://other"}),
        caller({"iss": "https://issuera", "sub": "da"}),
    ]
    assert len({each.key_id for each in others}) == 4
    assert {len(each.key_id) for each in others} == {32}


def test_without_settings_a_token_is_its_subject_alone() -> None:
    found = caller({"email": "ada@example.com", "groups": ["g"]})
    assert (found.name, found.user_id, found.team_ids, found.administers) == ("ada", None, (), False)


def test_the_claims_that_the_settings_name_say_who_it_is() -> None:
    found = caller(
        {
            "email": "ada@example.com",
            "org": {"team": "physics", "id": 7},
            "groups": ["a", "physics", "b"],
            "for": "eve",
        },
        user_id_jwt_field="sub",
        user_email_jwt_field="email",
        team_id_jwt_field="org.team",
        team_ids_jwt_field="groups",
        org_id_jwt_field="org.id",
        end_user_id_jwt_field="for",
    )
    assert (found.user_id, found.user_email, found.name) == ("ada", "ada@example.com", "ada@example.com")
    assert (found.team_ids, found.organization_id, found.end_user_id) == (("physics", "a", "b"), "7", "eve")
    assert found.needs_team


def test_a_name_with_dots_of_its_own_wins_over_a_path() -> None:
    assert claim({"https://example.com/team": "x"}, "https://example.com/team") == "x"
    assert claim({"a": {"b": 1}, "a.b": 2}, "a.b") == 2
    assert claim({"a": {"b": 1}}, "a.b") == 1
    for path in ("a.c", "a.b.c", "b", "a.b.c.d"):
        assert claim({"a": {"b": 1}}, path) is None


def test_a_token_without_a_team_has_the_default_one() -> None:
    assert caller({}, team_ids_jwt_field="groups", team_id_default="all").team_ids == ("all",)
    assert caller({"groups": ["x"]}, team_ids_jwt_field="groups", team_id_default="all").team_ids == ("x",)


def test_a_token_of_many_teams_is_of_a_bounded_number() -> None:
    groups = [f"g{number}" for number in range(1000)]
    assert len(caller({"groups": groups}, team_ids_jwt_field="groups").team_ids) == MOST_TEAMS


def test_a_token_that_needs_a_subject_and_has_none_is_refused() -> None:
    with pytest.raises(InvalidToken, match="sub"):
        caller_of({"iss": "x"}, JwtClaims())
    assert caller_of({"uid": "ada"}, JwtClaims(user_id_jwt_field="uid")).name == "ada"


@pytest.mark.parametrize(
    "value", [{"a": 1}, True, 1.5, "x" * (LONGEST_NAME + 1), "a\nb", "sk-looks-like-a-key", ["a\0"]]
)
def test_what_can_be_no_name_is_refused(value: Any) -> None:
    with pytest.raises(InvalidToken, match="uid"):
        caller({"uid": value}, user_id_jwt_field="uid")


@pytest.mark.parametrize(
    "claims, found",
    [
        ({"scope": "a b"}, {"a", "b"}),
        ({"scope": ["a", 7]}, {"a"}),
        ({"scp": "a", "scope": "b"}, {"a", "b"}),
        ({"scope": {"a": 1}}, set()),
        ({}, set()),
    ],
)
def test_scopes_are_words_or_a_list(claims: dict[str, Any], found: set[str]) -> None:
    assert scopes_of(claims) == found


def test_an_administrator_has_the_scope_or_a_role_for_it() -> None:
    mapping = (("boss", "proxy_admin"),)
    assert caller({"scope": "x litellm_proxy_admin"}).allowed_routes == ("management",)
    assert caller({"roles": ["x", "boss"]}, roles_jwt_field="roles", role_mappings=mapping).administers
    assert not caller({"scope": "litellm_proxy_admins", "roles": ["boss"]}).administers
    found = caller({"scope": "root"}, admin_jwt_scope="root", admin_allowed_routes=("management", "llm_api_routes"))
    assert found.allowed_routes == ("management", "llm_api_routes")


def test_an_administrator_needs_no_team() -> None:
    assert not caller({"scope": "litellm_proxy_admin"}, team_id_jwt_field="team").needs_team


def test_a_role_says_whether_the_object_is_a_team_or_a_user() -> None:
    settings: dict[str, Any] = {
        "roles_jwt_field": "roles",
        "object_id_jwt_field": "oid",
        "role_mappings": (("t", "team"), ("u", "internal_user")),
    }
    assert caller({"roles": "t", "oid": "physics"}, **settings).team_ids == ("physics",)
    assert caller({"roles": ["u"], "oid": "bob"}, **settings).user_id == "bob"
    assert caller({"oid": "bob"}, **settings).user_id is None
    assert "role" in refusal({"oid": "bob"}, enforce_rbac=True, **settings)


def test_a_token_needs_one_of_the_allowed_roles() -> None:
    settings: dict[str, Any] = {"user_roles_jwt_field": "realm.roles", "user_allowed_roles": ("ai",)}
    assert caller({"realm": {"roles": ["x", "ai"]}}, **settings)
    for claims in ({}, {"realm": {"roles": ["x"]}}, {"realm": {"roles": {"ai": 1}}}, {"realm": "ai"}):
        assert "realm.roles" in refusal(claims, **settings)


@pytest.mark.parametrize(
    "email", [None, "ada@evil.com", "ada@sub.example.com", "example.com", "a@example.com.evil.com"]
)
def test_an_address_of_another_domain_is_refused(email: str | None) -> None:
    settings = {"user_email_jwt_field": "email", "user_allowed_email_domain": "example.com"}
    assert "domain" in refusal({} if email is None else {"email": email}, **settings)
    assert caller({"email": "ada@EXAMPLE.com"}, **settings)


def test_scopes_open_models() -> None:
    settings: dict[str, Any] = {
        "enforce_scope_based_access": True,
        "scope_mappings": (("small", ("a", "b")), ("large", ("b", "c"))),
    }
    assert caller({"scope": "small large"}, **settings).models == ("a", "b", "c")
    assert "scopes" in refusal({"scope": "other"}, **settings)


@given(
    st.dictionaries(
        st.sampled_from(["iss", "sub", "email", "groups", "scope", "scp", "roles"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_whatever_a_token_says_there_is_a_caller_or_a_refusal(claims: dict[str, Any]) -> None:
    settings = JwtClaims(
        user_id_jwt_field="sub",
        user_email_jwt_field="email",
        team_id_jwt_field="groups",
        team_ids_jwt_field="groups",
        roles_jwt_field="roles",
        role_mappings=(("r", "team"),),
    )
    try:
        found = caller_of(claims, settings)
    except GatewayError as error:
        assert isinstance(error, InvalidToken | TokenNotAllowed)
    else:
        assert found.key_id
        assert found.name
