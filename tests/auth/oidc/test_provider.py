"""A discovery document is read strictly, and what is wrong with it is said to the operator."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.auth.oidc.provider import BASIC, POST, Provider, discovery_url, read_provider

ISSUER = "https://login.example.com/realms/ai"
DOCUMENT = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/auth",
    "token_endpoint": f"{ISSUER}/token",
    "userinfo_endpoint": f"{ISSUER}/userinfo",
    "end_session_endpoint": f"{ISSUER}/logout",
    "response_types_supported": ["code", "id_token"],
    "code_challenge_methods_supported": ["plain", "S256"],
    "authorization_response_iss_parameter_supported": True,
}


def read(issuer: str = ISSUER, **changed: Any) -> Provider:
    document = {name: value for name, value in {**DOCUMENT, **changed}.items() if value is not None}
    return read_provider(json.dumps(document).encode(), issuer)


def test_a_document_says_where_people_sign_in_and_out() -> None:
    found = read()
    assert found.authorization_endpoint == f"{ISSUER}/auth"
    assert found.end_session_endpoint == f"{ISSUER}/logout"
    assert found.names_itself
    small = read(userinfo_endpoint=None, end_session_endpoint=None, authorization_response_iss_parameter_supported=None)
    assert (small.userinfo_endpoint, small.end_session_endpoint, small.names_itself) == (None, None, False)


@pytest.mark.parametrize("issuer", [ISSUER, f"{ISSUER}/"])
def test_the_document_is_below_the_issuer(issuer: str) -> None:
    assert discovery_url(issuer) == f"{ISSUER}/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("methods", "by"),
    [(None, BASIC), ([BASIC, POST], BASIC), ([POST], POST), (["private_key_jwt"], None), ("no list", BASIC)],
)
def test_a_secret_is_sent_as_the_provider_takes_it(methods: Any, by: str | None) -> None:
    assert read(token_endpoint_auth_methods_supported=methods).secret_by == by


@pytest.mark.parametrize("other", [f"{ISSUER}/", "https://evil.example.com", "https://LOGIN.example.com/realms/ai"])
def test_a_document_of_another_issuer_is_refused_and_named(other: str) -> None:
    with pytest.raises(ValueError, match="of another issuer: write issuer: '") as raised:
        read_provider(json.dumps({**DOCUMENT, "issuer": other}).encode(), ISSUER)
    assert other in str(raised.value)


@pytest.mark.parametrize("issuer", [None, 7, "https://x\n[forged]", "x" * 3_000])
def test_an_issuer_that_must_not_be_in_a_log_is_not_repeated(issuer: Any) -> None:
    with pytest.raises(ValueError, match="names no issuer"):
        read_provider(json.dumps({**DOCUMENT, "issuer": issuer}).encode(), ISSUER)


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example.com/auth",
        "//login.example.com/auth",
        "javascript:alert(1)",
        "https:///auth",
        "https://user:password@login.example.com/auth",
        "https://login.example.com/a b",
        "https://login.example.com/#part",
        'https://login.example.com/"><script>',
        "https://login.example.com:port/",
        "https://login.example.com/\r\nset-cookie: a=b",
        f"https://login.example.com/{'x' * 3_000}",
        None,
        7,
    ],
)
@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "end_session_endpoint"])
def test_no_endpoint_leads_to_where_no_tls_is(name: str, url: Any) -> None:
    with pytest.raises(ValueError, match=name):
        read_provider(json.dumps({**DOCUMENT, name: url}).encode(), ISSUER)


def test_a_provider_on_this_machine_may_lack_tls() -> None:
    local = "http://127.0.0.1:8080"
    endpoints = {name: f"{local}/x" for name in DOCUMENT if name.endswith("_endpoint")}
    found = read_provider(json.dumps({**DOCUMENT, **endpoints, "issuer": local}).encode(), local)
    assert found.token_endpoint == f"{local}/x"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"response_types_supported": ["id_token"]}, "does not answer with a code"),
        ({"code_challenge_methods_supported": ["plain"]}, "does not take S256"),
    ],
)
def test_a_provider_without_codes_or_pkce_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read(**changed)


def test_a_provider_that_does_not_say_that_it_has_pkce_may_have_it() -> None:
    # such as Entra ID
    assert read(code_challenge_methods_supported=None).token_endpoint


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode()))
def test_whatever_the_document_is_it_is_read_or_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="discovery document"):
        read_provider(body, ISSUER)
