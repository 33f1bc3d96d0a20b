"""The settings of the console."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config.console import ConsoleSettings
from twisted_vllm.config.describe import describe
from twisted_vllm.config.jwt import JwtClaims
from twisted_vllm.config.settings import Settings

KEY = {"LITELLM_MASTER_KEY": "sk-master", **BASE}
OIDC = {"issuer": "https://login.example.com/realms/ai", "client_id": "gateway", "client_secret": "a-client-secret"}
HERE = "passthrough.console.oidc"


def written(**oidc: Any) -> str:
    found = {name: value for name, value in {**OIDC, **oidc}.items() if value is not None}
    return json.dumps({"passthrough": {"console": {"oidc": found}}})


def test_it_is_on_and_needs_nothing(load_text: Loader) -> None:
    assert load_text("", BASE).console == ConsoleSettings()
    assert ConsoleSettings().enabled
    assert ConsoleSettings().oidc.issuer is None


def test_a_provider_is_an_issuer_and_a_client_whose_secret_is_hidden(load_text: Loader) -> None:
    settings: Settings = load_text(written(), KEY)
    oidc = settings.console.oidc
    assert (oidc.issuer, oidc.client_id, oidc.shown_name) == (OIDC["issuer"], "gateway", "login.example.com")
    assert oidc.scopes == ("openid", "profile", "email")
    assert "a-client-secret" in settings.secrets
    assert "a-client-secret" not in repr(settings)
    described = "\n".join(describe(settings))
    assert "at https://login.example.com/realms/ai as gateway" in described
    assert "a-client-secret" not in described
    assert load_text(written(name="Example"), KEY).console.oidc.shown_name == "Example"


def test_a_client_without_a_secret_is_public(load_text: Loader) -> None:
    assert load_text(written(client_secret=None), KEY).console.oidc.client_secret is None


def test_the_claims_are_those_of_tokens_by_the_same_names(load_text: Loader) -> None:
    claims = {"team_ids_jwt_field": "groups", "roles_jwt_field": "a.b", "user_id_upsert": True}
    claims |= {"role_mappings": [{"role": "r", "internal_role": "proxy_admin"}], "enforce_rbac": True}
    found = load_text(written(claims=claims), KEY).console.oidc.claims.as_token_claims()
    assert found == JwtClaims(
        user_id_jwt_field="sub",
        user_email_jwt_field="email",
        team_ids_jwt_field="groups",
        roles_jwt_field="a.b",
        role_mappings=(("r", "proxy_admin"),),
        enforce_rbac=True,
        user_id_upsert=True,
    )


@pytest.mark.parametrize("issuer", ["http://127.0.0.1:8080", "http://localhost:8080/realms/ai", "http://[::1]:8080"])
def test_a_provider_without_tls_is_for_this_machine(load_text: Loader, issuer: str) -> None:
    settings = load_text(written(issuer=issuer), KEY)
    assert any("only for trying it out on one machine" in str(warning) for warning in settings.warnings)


@pytest.mark.parametrize(
    ("oidc", "place", "says"),
    [
        (
            {"issuer": "http://login.example.com"},
            ".issuer",
            "must begin with https://: whoever can answer in its place",
        ),
        ({"issuer": "login.example.com"}, ".issuer", "must begin with http"),
        ({"issuer": "https://x/?a=b"}, ".issuer", "must be the issuer alone"),
        ({"issuer": "https://x/.well-known/openid-configuration"}, ".issuer", "not its discovery document"),
        ({"issuer": "https://a:b@x"}, ".issuer", "must not hold a user name or a password"),
        ({"issuer": None}, ".issuer", "is missing"),
        ({"client_id": None}, ".client_id", "is missing"),
        ({"scopes": ["a b"]}, ".scopes", "must be one scope"),
        ({"algorithms": ["HS256"]}, ".algorithms", "must be one of"),
        ({"claims": {"role_mappings": [{"role": "r", "internal_role": "team"}]}}, ".claims", "needs roles_jwt_field"),
        ({"claims": {"enforce_rbac": True}}, ".claims", "needs role_mappings"),
        ({"claims": {"user_allowed_roles": ["r"]}}, ".claims", "together, or none of them"),
        ({"claims": {"user_email_jwt_field": None, "user_allowed_email_domain": "x"}}, ".claims", "needs user_email"),
        ({"claims": {"team_id_jwt_field": "x"}}, ".claims", "is not a known setting"),
    ],
)
def test_what_lets_nobody_or_anybody_in_is_refused(
    problems_of: Refusal, oidc: dict[str, Any], place: str, says: str
) -> None:
    lines = problems_of(written(**oidc), KEY)
    assert any(HERE + place in line and says in line for line in lines), lines


def test_nobody_signs_in_where_everybody_is_an_administrator(problems_of: Refusal) -> None:
    [line] = problems_of(written())
    assert line.startswith(f"{HERE}: lets nobody in while there is no master key")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://gateway.example.com/ui", "must be scheme, host and port alone"),
        ("https://gateway.example.com?x", "must be scheme, host and port alone"),
        ("gateway.example.com", "must begin with http"),
    ],
)
def test_the_gateway_s_address_has_no_path(problems_of: Refusal, url: str, says: str) -> None:
    lines = problems_of(json.dumps({"passthrough": {"console": {"url": url}}}))
    assert any(line.startswith("passthrough.console.url: ") and says in line for line in lines)


def test_the_gateway_s_address_has_no_slash_at_its_end(load_text: Loader) -> None:
    text = json.dumps({"passthrough": {"console": {"url": "https://gateway.example.com/"}}})
    assert load_text(text, BASE).console.url == "https://gateway.example.com"
