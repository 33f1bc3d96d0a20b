"""Tokens are checked strictly: the issuer's key decides which signature counts, never the token."""

from __future__ import annotations

import hashlib
import hmac
import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.identification.issuer import AUDIENCE, ISSUER, SigningKey, encoded, key_set
from twisted_vllm.auth.tokens import (
    LONGEST_HEADER,
    LONGEST_TOKEN,
    MOST_KEYS,
    TokenRules,
    Verified,
    fitting,
    is_token,
    read_header,
    read_key_set,
    verify,
)
from twisted_vllm.config.jwt import ALGORITHMS
from twisted_vllm.errors import ExpiredApiKey, GatewayError, InvalidToken

NOW = 1_800_000_000.0
LEEWAY = 10.0
RULES = TokenRules(frozenset(ALGORITHMS), frozenset((AUDIENCE,)), frozenset((ISSUER,)), LEEWAY)


@cache
def signing_key(alg: str = "RS256", kid: str = "k1") -> SigningKey:
    return SigningKey(kid, alg)


def token_with(**claims: Any) -> str:
    return signing_key().token(NOW, **claims)


def check(token: str, keys: bytes | None = None, rules: TokenRules = RULES, now: float = NOW) -> Verified:
    """Check a token as the gateway does."""
    found = read_key_set(key_set(signing_key()) if keys is None else keys)
    header = read_header(token, rules.algorithms)
    return verify(token, header, fitting(found, header), rules, now)


def refusal(token: str, keys: bytes | None = None, rules: TokenRules = RULES, now: float = NOW) -> str:
    with pytest.raises(GatewayError) as raised:
        check(token, keys, rules, now)
    assert isinstance(raised.value, InvalidToken | ExpiredApiKey)
    assert token not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_token_of_the_issuer_is_valid(alg: str) -> None:
    key = signing_key(alg)
    verified = check(key.token(NOW), key_set(key))
    assert (verified.claims["sub"], verified.key.kid, verified.until) == ("ada", "k1", NOW + 600 + LEEWAY)


@pytest.mark.parametrize(
    "text", ["", "sk-0123456789abcdef", "a.b.c", "eyJ", "eyJhbGciOiJ9.e30", "eyJh.e30.e30.e30", "eyJ .a.b"]
)
def test_what_has_another_form_is_no_token(text: str) -> None:
    assert not is_token(text)


def test_a_token_has_its_form_whatever_its_size() -> None:
    assert is_token(signing_key().token(NOW))
    assert is_token("eyJ" + "a" * 10 * LONGEST_TOKEN + ".b.c")


# who signed it


def test_none_is_no_signature() -> None:
    claims = signing_key().token(NOW).split(".")[1]
    for alg in ("none", "None", "NONE", ""):
        token = f"{encoded(json.dumps({'alg': alg, 'kid': 'k1'}).encode())}.{claims}."
        assert "alg" in refusal(token)


def test_a_signature_cannot_be_left_out() -> None:
    assert "signature" in refusal(signing_key().token(NOW).rpartition(".")[0] + ".")


def test_the_public_key_is_no_secret_of_an_hmac() -> None:
    """The classic confusion: HS256 with the public key, in whatever spelling, as the secret."""
    jwk = signing_key().public_jwk()
    for secret in (json.dumps(jwk), jwk["n"]):
        message = (
            f"{encoded(json.dumps({'alg': 'HS256', 'kid': 'k1'}).encode())}.{signing_key().token(NOW).split('.')[1]}"
        )
        signature = hmac.new(secret.encode(), message.encode(), hashlib.sha256).digest()
        assert "alg" in refusal(f"{message}.{encoded(signature)}")


def test_a_secret_in_a_key_set_is_not_used() -> None:
    assert read_key_set(key_set({"kty": "oct", "k": encoded(b"secret" * 8), "kid": "k1", "alg": "HS256"})) == []


def test_a_private_key_in_a_key_set_is_not_used() -> None:
    """Everybody can read it, so everybody can sign with it."""
    assert read_key_set(key_set(signing_key().public_jwk(d=encoded(b"private")))) == []


@pytest.mark.parametrize(
    "key_alg, token_alg", [("RS256", "ES256"), ("ES256", "RS256"), ("ES256", "ES384"), ("EdDSA", "ES256")]
)
def test_the_type_of_the_key_decides_about_the_algorithm(key_alg: str, token_alg: str) -> None:
    token = signing_key(token_alg).token(NOW)
    header = read_header(token, RULES.algorithms)
    assert fitting(read_key_set(key_set(signing_key(key_alg))), header) == []


def test_a_key_for_one_algorithm_makes_no_signature_of_another() -> None:
    keys = key_set(signing_key().public_jwk(alg="RS512"))
    assert fitting(read_key_set(keys), read_header(signing_key().token(NOW), RULES.algorithms)) == []
    assert check(signing_key().token(NOW, alg="RS512"), keys)


def test_an_algorithm_that_the_operator_left_out_is_refused() -> None:
    rules = TokenRules(frozenset(("ES256",)), None, None, 0)
    assert "alg" in refusal(signing_key().token(NOW), rules=rules)


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_a_key_that_the_token_brings_or_names_is_ignored(name: str) -> None:
    own = SigningKey("k1")
    value: Any = {
        "jwk": own.public_jwk(),
        "jku": "https://evil.example/keys",
        "x5u": "https://evil.example/c",
        "x5c": ["x"],
    }
    assert "signature" in refusal(own.token(NOW, {name: value[name]}))
    assert check(signing_key().token(NOW, {name: value[name]}))


def test_the_signature_of_another_key_with_the_same_id_is_refused() -> None:
    assert "signature" in refusal(SigningKey("k1").token(NOW))


def test_two_keys_may_have_one_id() -> None:
    other = SigningKey("k1")
    keys = key_set(other, signing_key())
    assert check(signing_key().token(NOW), keys).key is not check(other.token(NOW), keys).key


def test_a_token_without_a_key_id_may_be_of_any_key() -> None:
    keys = key_set(SigningKey("k0"), signing_key())
    assert check(signing_key().token(NOW, {"kid": None}), keys).key.kid == "k1"


def test_a_key_for_encryption_verifies_nothing() -> None:
    for members in (
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"kid": 7},
        {"alg": 7},
        {"n": "!"},
        {"kty": "?"},
    ):
        assert read_key_set(key_set(signing_key().public_jwk(**members))) == []


def test_a_short_rsa_key_is_not_used() -> None:
    assert read_key_set(key_set(SigningKey(bits=1024))) == []


def test_a_key_set_has_a_bounded_number_of_keys() -> None:
    assert (
        len(read_key_set(key_set(*[signing_key().public_jwk(kid=f"{each}") for each in range(MOST_KEYS + 5)])))
        == MOST_KEYS
    )


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"keys": 7}', b"<html>", b"[" * 100_000])
def test_what_is_no_key_set_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        read_key_set(data)


# what the header says


def test_an_extension_that_must_be_understood_is_refused() -> None:
    for crit in (["exp"], ["b64"], []):
        assert "crit" in refusal(signing_key().token(NOW, {"crit": crit, "b64": False}))


@pytest.mark.parametrize("typ", ["dpop+jwt", "logout+jwt", "secevent+jwt", "JOSE", ""])
def test_a_token_of_another_type_grants_no_access(typ: str) -> None:
    assert "typ" in refusal(signing_key().token(NOW, {"typ": typ}))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+jwt", None])
def test_the_types_of_access_tokens_are_accepted(typ: str | None) -> None:
    assert check(signing_key().token(NOW, {"typ": typ}))


@pytest.mark.parametrize(
    "header", [{"kid": 7}, {"kid": ["k1"]}, {"alg": None}, {"alg": ["RS256"]}, {"typ": 1}, {"kid": "k" * 600}]
)
def test_a_header_that_is_not_text_is_refused(header: dict[str, Any]) -> None:
    token = signing_key().signed(json.dumps({"alg": "RS256", "kid": "k1", **header}), "{}")
    assert refusal(token)


def test_a_name_that_is_repeated_is_refused() -> None:
    """Two readers would see two tokens."""
    key = signing_key()
    claims = json.dumps({"iss": ISSUER, "aud": AUDIENCE, "exp": NOW + 60, "sub": "ada"})
    assert "repeats" in refusal(key.signed('{"alg": "none", "alg": "RS256", "kid": "k1"}', claims))
    assert "repeats" in refusal(key.signed('{"alg": "RS256", "kid": "k1"}', claims[:-1] + ', "sub": "root"}'))
    assert "repeats" in refusal(key.signed('{"alg": "RS256", "kid": "k1"}', claims[:-1] + ', "a": {"b": 1, "b": 2}}'))


def test_a_token_that_is_too_large_is_refused_before_it_is_read() -> None:
    assert "large" in refusal("eyJ" + "a" * LONGEST_TOKEN + ".b.c")
    assert "large" in refusal("eyJ" + "a" * LONGEST_HEADER + ".b.c")


@given(st.text("eyJabcdefghijklmnopqrstuvwxyz0123456789-_", max_size=60), st.text("abcXYZ09-_", max_size=60))
def test_whatever_has_the_form_of_a_token_is_refused_in_words(header: str, rest: str) -> None:
    assert refusal(f"eyJ{header}.{rest or 'a'}.{rest}")


# times


def test_an_expired_token_is_refused_once_the_clocks_cannot_be_to_blame() -> None:
    token = signing_key().token(NOW)
    assert check(token, now=NOW + 600 + LEEWAY - 0.1)
    assert "expired" in refusal(token, now=NOW + 600 + LEEWAY)


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_of_the_future_is_refused_beyond_the_leeway(name: str) -> None:
    assert check(token_with(**{name: NOW + LEEWAY}))
    assert name in refusal(token_with(**{name: NOW + LEEWAY + 1}))


def test_a_token_that_never_expires_is_refused() -> None:
    assert "exp" in refusal(signing_key().token(NOW, exp=None))


@pytest.mark.parametrize("value", ["tomorrow", True, [1], {}, 1e300, -1e300])
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_a_time_that_is_no_time_is_refused(name: str, value: Any) -> None:
    assert name in refusal(signing_key().token(NOW, **{name: value}))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_no_number_at_all_is_no_time(word: str) -> None:
    claims = f'{{"iss": "{ISSUER}", "aud": "{AUDIENCE}", "sub": "ada", "exp": {word}}}'
    assert "exp" in refusal(signing_key().signed('{"alg": "RS256", "kid": "k1"}', claims))


# for whom, and of whom


@pytest.mark.parametrize("aud", [AUDIENCE, ["other", AUDIENCE]])
def test_a_token_for_this_gateway_is_accepted(aud: Any) -> None:
    assert check(signing_key().token(NOW, aud=aud))


@pytest.mark.parametrize("aud", [None, "other", [], ["other"], {"vllm": 1}, 7, [7], "vllm2", [["vllm"]]])
def test_a_token_for_another_program_is_refused(aud: Any) -> None:
    assert "audience" in refusal(signing_key().token(NOW, aud=aud))
    assert check(signing_key().token(NOW, aud=aud), rules=TokenRules(RULES.algorithms, None, RULES.issuers, 0))


@pytest.mark.parametrize("iss", [None, "https://evil.example", ISSUER + "/", ISSUER.upper(), [ISSUER], 7])
def test_a_token_of_another_issuer_is_refused(iss: Any) -> None:
    assert "issuer" in refusal(signing_key().token(NOW, iss=iss))
    assert check(signing_key().token(NOW, iss=iss), rules=TokenRules(RULES.algorithms, RULES.audiences, None, 0))


def test_a_key_that_is_not_trusted_any_more_fits_nothing() -> None:
    keys = read_key_set(key_set(signing_key()))
    keys[0].trusted = False
    assert fitting(keys, read_header(signing_key().token(NOW), RULES.algorithms)) == []
