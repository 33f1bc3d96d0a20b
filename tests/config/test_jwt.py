"""Tokens in place of keys: LiteLLM's settings, and what must be said before any token counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.config.config_harness import BASE
from twisted_vllm.config.jwt import IGNORED, RESTRICTING
from twisted_vllm.config.settings import Settings

ENOUGH = {
    **BASE,
    "LITELLM_MASTER_KEY": "sk-master-0123456789",
    "JWT_PUBLIC_KEY_URL": "https://login.example.com/keys",
    "JWT_AUDIENCE": "vllm",
}


def text(claims: str = "", own: str = "") -> str:
    return f"general_settings: {{enable_jwt_auth: true, litellm_jwtauth: {{{claims}}}}}\npassthrough: {{{own}}}"


def without(*names: str) -> Mapping[str, str]:
    return {name: value for name, value in ENOUGH.items() if name not in names}


def test_litellm_s_environment_is_enough(load_text: Any) -> None:
    settings: Settings = load_text(text("user_id_jwt_field: sub"), {**ENOUGH, "JWT_ISSUER": "https://a, https://b"})
    assert settings.enable_jwt_auth
    assert settings.litellm_jwtauth.user_id_jwt_field == "sub"
    assert settings.jwt_public_key_url == ("https://login.example.com/keys",)
    assert (settings.jwt_audience, settings.jwt_issuer) == (("vllm",), ("https://a", "https://b"))


def test_several_key_sets_stand_with_commas_between(load_text: Any) -> None:
    settings: Settings = load_text(text(), {**ENOUGH, "JWT_PUBLIC_KEY_URL": "https://a/k, https://b/k"})
    assert settings.jwt_public_key_url == ("https://a/k", "https://b/k")


@pytest.mark.parametrize(
    "missing, path",
    [
        ("JWT_PUBLIC_KEY_URL", "passthrough.jwt_public_key_url"),
        ("JWT_AUDIENCE", "passthrough.jwt_audience"),
        ("LITELLM_MASTER_KEY", "general_settings.enable_jwt_auth"),
    ],
)
def test_without_keys_an_audience_or_a_master_key_the_gateway_does_not_start(
    problems_of: Any, load_text: Any, missing: str, path: str
) -> None:
    (problem,) = problems_of(text(), without(missing))
    assert problem.startswith(f"{path}: ")
    assert missing in problem
    assert load_text("general_settings: {enable_jwt_auth: false}", without(missing))


def test_any_audience_is_accepted_where_the_operator_says_so(load_text: Any) -> None:
    settings: Settings = load_text(text(own="jwt: {accept_any_audience: true}"), without("JWT_AUDIENCE"))
    assert settings.jwt.accept_any_audience


@pytest.mark.parametrize("name", sorted(RESTRICTING))
def test_what_would_restrict_and_is_not_implemented_is_refused_by_name(problems_of: Any, name: str) -> None:
    (problem,) = problems_of(text(f"{name}: x"), ENOUGH)
    assert problem.startswith(f"general_settings.litellm_jwtauth.{name}: would ")


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_what_would_only_widen_is_ignored_with_a_warning(load_text: Any, name: str) -> None:
    settings: Settings = load_text(text(f"{name}: x"), ENOUGH)
    assert any(f"litellm_jwtauth.{name}: not implemented" in warning for warning in settings.warnings)


@pytest.mark.parametrize(
    "claims, word",
    [
        ("user_id_jwt_fild: sub", "user_id_jwt_field"),
        ("user_id_jwt_field: a..b", "dots"),
        ("user_roles_jwt_field: roles", "user_allowed_roles"),
        ("user_allowed_email_domain: example.com", "user_email_jwt_field"),
        ("role_mappings: [{role: a, internal_role: team}]", "roles_jwt_field"),
        ("role_mappings: [{role: a, internal_role: boss}], roles_jwt_field: r", "proxy_admin"),
        ("role_mappings: [{role: a, internal_role: team, x: 1}], roles_jwt_field: r", "internal_role"),
        ("role_mappings: {a: b}, roles_jwt_field: r", "list"),
        ("enforce_rbac: true", "role_mappings"),
        ("object_id_jwt_field: oid", "role_mappings"),
        ("enforce_scope_based_access: true", "scope_mappings"),
        ("scope_mappings: [{scope: a, models: [m]}]", "enforce_scope_based_access"),
        ("user_id_upsert: true", "user_id_jwt_field"),
        ("admin_allowed_routes: [all_routes]", "management_routes"),
    ],
)
def test_what_would_not_act_as_it_reads_is_refused(problems_of: Any, claims: str, word: str) -> None:
    (problem,) = problems_of(text(claims), ENOUGH)
    assert problem.startswith("general_settings.litellm_jwtauth")
    assert word in problem


@pytest.mark.parametrize(
    "url",
    ["ftp://a/k", "https://", "https://user:secret@a/k", "https://a:99999/k", "https://a/ k", "/keys", "https://a/k#x"],
)
def test_what_is_no_url_of_a_key_set_is_refused_and_not_repeated(problems_of: Any, url: str) -> None:
    (problem,) = problems_of(text(), {**ENOUGH, "JWT_PUBLIC_KEY_URL": url})
    assert "secret" not in problem


def test_keys_over_plain_http_cause_a_warning(load_text: Any) -> None:
    settings: Settings = load_text(text(), {**ENOUGH, "JWT_PUBLIC_KEY_URL": "http://keycloak:8080/keys"})
    assert any("is not https://" in warning for warning in settings.warnings)
    settings = load_text(text(), {**ENOUGH, "JWT_PUBLIC_KEY_URL": "http://127.0.0.1:8080/keys"})
    assert settings.warnings == ()


def test_routes_are_litellm_s_groups_or_paths(load_text: Any) -> None:
    settings: Settings = load_text(
        text(
            "team_allowed_routes: [openai_routes, info_routes, /v1/messages], admin_allowed_routes: [management_routes]"
        ),
        ENOUGH,
    )
    assert settings.litellm_jwtauth.team_allowed_routes == ("llm_api_routes", "/v1/messages")
    assert settings.litellm_jwtauth.admin_allowed_routes == ("management",)
