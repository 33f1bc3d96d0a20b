"""What a browser keeps of a sign-in: nobody but the gateway reads or makes it, and it lasts ten minutes."""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.auth.oidc.test_provider import ISSUER, read
from twisted_vllm.auth.oidc.attempt import (
    ATTEMPT_SECONDS,
    LONGEST_SEALED,
    Attempt,
    Attempts,
    authorization_url,
    with_query,
)
from twisted_vllm.config.secret import Secret

NOW = 1_800_000_000.0
CALLBACK = "https://gateway.example.com/ui/oidc/callback"
ATTEMPTS = Attempts(Secret("sk-master"), os.urandom)


def make(page: str = "/ui/keys") -> Attempt:
    return ATTEMPTS.make(ISSUER, "gateway", CALLBACK, page, NOW)


def test_an_attempt_comes_back_as_it_was() -> None:
    attempt = make()
    sealed = ATTEMPTS.seal(attempt)
    assert ATTEMPTS.open(sealed, NOW + 1) == attempt
    assert len(sealed) < 1_500
    for word in (attempt.state, attempt.nonce, attempt.verifier):
        assert len(word) == 43
        assert word not in sealed and word not in repr(attempt)


def test_each_attempt_has_words_of_its_own() -> None:
    words = {word for attempt in (make(), make()) for word in (attempt.state, attempt.nonce, attempt.verifier)}
    assert len(words) == 6


def test_an_attempt_ends_after_ten_minutes() -> None:
    sealed = ATTEMPTS.seal(make())
    assert ATTEMPTS.open(sealed, NOW + ATTEMPT_SECONDS - 1) is not None
    assert ATTEMPTS.open(sealed, NOW + ATTEMPT_SECONDS) is None


def test_an_attempt_opens_with_the_same_secret_alone() -> None:
    sealed = ATTEMPTS.seal(make())
    assert Attempts(Secret("sk-master"), os.urandom).open(sealed, NOW) is not None
    assert Attempts(Secret("sk-other"), os.urandom).open(sealed, NOW) is None
    assert Attempts(None, os.urandom).open(sealed, NOW) is None
    assert not Attempts(None, os.urandom).can_seal


@given(st.text(max_size=300) | st.integers(0, 300).map(lambda n: ATTEMPTS.seal(make())[:n]))
@example("")
@example("v1.")
@example("v1." + "A" * LONGEST_SEALED)
def test_what_the_gateway_did_not_seal_is_no_attempt(text: str) -> None:
    assert ATTEMPTS.open(text, NOW) is None


def test_the_browser_goes_to_the_provider_with_pkce_and_a_nonce() -> None:
    attempt = make()
    url = authorization_url(read(), attempt, ("email", "openid", "groups"))
    asked = {name: value for name, [value] in parse_qs(urlsplit(url).query, strict_parsing=True).items()}
    challenge = urlsafe_b64encode(sha256(attempt.verifier.encode()).digest()).rstrip(b"=").decode()
    assert url.startswith(f"{ISSUER}/auth?")
    assert asked == {
        "response_type": "code",
        "client_id": "gateway",
        "redirect_uri": CALLBACK,
        "scope": "openid email groups",
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    assert attempt.verifier not in url


@pytest.mark.parametrize(
    ("url", "joined"), [("https://x/a", "https://x/a?n=v"), ("https://x/a?p=B2C", "https://x/a?p=B2C&n=v")]
)
def test_an_endpoint_may_have_a_query_of_its_own(url: str, joined: str) -> None:
    assert with_query(url, {"n": "v"}) == joined
