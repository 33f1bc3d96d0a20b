"""An ID token is of this attempt and this client, and says who signed in."""

from __future__ import annotations

from typing import Any

import pytest

from twisted_vllm.auth.oidc.id_token import check_id_token, claims_of_person, half_hash
from twisted_vllm.errors import InvalidToken, TokenNotAllowed

CLAIMS = {"sub": "ada", "aud": "gateway", "nonce": "n0nce", "iat": 1}


def check(access_token: str | None = None, alg: str = "RS256", **changed: Any) -> None:
    claims = {name: value for name, value in {**CLAIMS, **changed}.items() if value is not None}
    check_id_token(claims, client_id="gateway", nonce="n0nce", alg=alg, access_token=access_token)


def test_a_token_of_this_attempt_is_valid() -> None:
    check()
    check(azp="gateway", aud=["gateway", "other"])
    check(aud=["gateway"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"nonce": None}, "nonce"),
        ({"nonce": "other"}, "nonce"),
        ({"nonce": 7}, "nonce"),
        ({"azp": "other"}, "another client"),
        ({"azp": 7}, "another client"),
        ({"aud": ["gateway", "other"]}, "several audiences"),
        ({"sub": None}, "subject"),
        ({"sub": ""}, "subject"),
        ({"sub": "a\nb"}, "subject"),
        ({"sub": "x" * 256}, "subject"),
        ({"iat": None}, "when it was made"),
    ],
)
def test_any_other_token_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidToken, match=says):
        check(**changed)


def test_the_hash_of_the_access_token_is_that_of_the_standard() -> None:
    """OpenID Connect Core 1.0 appendix A.3 has this pair."""
    assert half_hash("jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y", "RS256") == "77QmUPtjPfzWtF2AnpK9RQ"


@pytest.mark.parametrize("alg", ["RS256", "PS384", "ES512", "EdDSA"])
def test_an_access_token_must_be_that_of_the_id_token(alg: str) -> None:
    check("token", alg, at_hash=half_hash("token", alg))
    check(None, alg, at_hash="anything")
    with pytest.raises(InvalidToken, match="at_hash"):
        check("another", alg, at_hash=half_hash("token", alg))
    with pytest.raises(InvalidToken, match="at_hash"):
        check("token", alg, at_hash=7)


def test_what_the_userinfo_endpoint_says_fills_gaps_alone() -> None:
    found = claims_of_person(
        {**CLAIMS, "email": "ada@example.com"}, {"sub": "ada", "email": "x", "groups": ["a"]}, "sub"
    )
    assert (found["email"], found["groups"]) == ("ada@example.com", ["a"])


@pytest.mark.parametrize("more", [{"sub": "eve", "groups": ["admins"]}, {"groups": ["admins"]}])
def test_the_userinfo_of_somebody_else_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken, match="another subject"):
        claims_of_person(CLAIMS, more, "sub")


def test_scopes_are_no_claims_of_a_person() -> None:
    found = claims_of_person({**CLAIMS, "scope": "litellm_proxy_admin", "scp": ["litellm_proxy_admin"]}, {}, "sub")
    assert not {"scope", "scp"} & set(found)


@pytest.mark.parametrize("verified", [False, "false"])
def test_an_address_that_was_not_verified_is_nobody_s(verified: Any) -> None:
    claims = {**CLAIMS, "email": "ada@example.com", "email_verified": verified}
    assert "email" not in claims_of_person(claims, {}, "sub")
    with pytest.raises(TokenNotAllowed, match="has not verified"):
        claims_of_person(claims, {}, "email")


@pytest.mark.parametrize("claims", [{"email_verified": True}, {"email_verified": "true"}, {}])
def test_an_address_that_was_verified_or_not_doubted_counts(claims: dict[str, Any]) -> None:
    assert claims_of_person({**CLAIMS, "email": "a@b.c", **claims}, {}, "email")["email"] == "a@b.c"
