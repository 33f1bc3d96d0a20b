"""Checks JSON Web Tokens (RFC 7519) against the keys of their issuer (RFC 7517), strictly and without I/O.

The key decides which signatures it may make, never the token (RFC 8725 §3.1): a key set holds public keys only, each
with the algorithms of its own type, so neither ``none`` nor an HMAC with a public key can be valid. Keys that a token
brings or names itself (``jwk``, ``jku``, ``x5c``, ``x5u``) are not looked at.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Collection, Iterable, Mapping
from json import dumps, loads
from math import isfinite
from typing import Any

import attrs

from twisted_vllm.errors import ExpiredApiKey, InvalidToken

#: characters of a token, and of its header
LONGEST_TOKEN, LONGEST_HEADER = 16_384, 2_048
#: keys of one key set that are used; RSA keys have at least 2,048 bits (RFC 7518 §3.3)
MOST_KEYS = 100
_RSA_BITS = range(2_048, 8_193)
#: keys of one id to try: an issuer may have one of each type
MOST_OF_ONE_ID = 4
_LONGEST_ID = 512

_FORM = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
#: the types of tokens that grant access: RFC 7519 §5.1, RFC 9068 §2.1
_TYPES = frozenset(("jwt", "at+jwt", "application/jwt", "application/at+jwt"))

_RSA = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
#: what makes a key (RFC 7518 §6)
_PUBLIC = ("kty", "crv", "x", "y", "n", "e", "kid", "alg")
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


def is_token(credential: str) -> bool:
    """Return whether a credential has the form of a JSON Web Token, whatever its size."""
    return credential.startswith("eyJ") and _FORM.fullmatch(credential) is not None


@attrs.define(eq=False)
class TokenKey:
    """A public key of an issuer.

    Attributes:
        kid: its id; empty if it has none.
        algorithms: the signatures that it may make.
        thumbprint: the same for the same key.
        key: the key.
        trusted: whether the issuer still publishes it.
    """

    kid: str
    algorithms: frozenset[str]
    thumbprint: str
    key: Any = attrs.field(repr=False)
    trusted: bool = True


@attrs.frozen
class TokenHeader:
    """What a token says of its signature."""

    alg: str
    kid: str


@attrs.frozen
class TokenRules:
    """What a token must be.

    Attributes:
        algorithms: the signatures that are accepted.
        audiences: the audiences, of which it needs one; None for any.
        issuers: the issuers, of which it needs one; None for any.
        leeway: how far clocks may differ, in seconds.
    """

    algorithms: frozenset[str]
    audiences: frozenset[str] | None
    issuers: frozenset[str] | None
    leeway: float


def read_header(token: str, accepted: frozenset[str]) -> TokenHeader:
    """Return the header of a token that has the form of one.

    Args:
        token: the token.
        accepted: the signatures that are accepted.

    Raises:
        InvalidToken: it is too large, or says something that this gateway does not do.
    """
    if len(token) > LONGEST_TOKEN:
        raise InvalidToken(f"This token is too large: it has {len(token)} characters, at most {LONGEST_TOKEN} may be.")
    part = token.partition(".")[0]
    if len(part) > LONGEST_HEADER:
        raise InvalidToken("The header of this token is too large.")
    header = _object(part, "header")
    if "crit" in header:
        raise InvalidToken("This token has an extension that must be understood (crit), which this gateway does not.")
    alg, kid, typ = header.get("alg"), header.get("kid", ""), header.get("typ", "JWT")
    if not isinstance(alg, str) or not isinstance(kid, str) or not isinstance(typ, str) or len(kid) > _LONGEST_ID:
        raise InvalidToken("The header of this token is not valid: alg, kid and typ must be text.")
    if typ.lower() not in _TYPES:
        raise InvalidToken("This token is no access token: the typ in its header is neither JWT nor at+jwt.")
    if alg not in accepted:
        raise InvalidToken("The algorithm that signed this token (alg) is not accepted here.")
    return TokenHeader(alg, kid)


def read_key_set(data: bytes) -> list[TokenKey]:
    """Return the keys of a key set that can sign tokens; others are left out.

    Args:
        data: the JSON of the key set.

    Raises:
        ValueError: it is no key set.
    """
    try:
        found = loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise ValueError("it has no list of keys")
    read = [_key_of(each) for each in keys[:MOST_KEYS] if isinstance(each, dict)]
    return [key for key in read if key is not None]


def fitting(keys: Iterable[TokenKey], header: TokenHeader) -> list[TokenKey]:
    """Return the keys that may have signed a token. One without a key id may be of any key, if these are few."""
    found = [
        key
        for key in keys
        if key.trusted and header.alg in key.algorithms and (not header.kid or key.kid == header.kid)
    ]
    return found[:MOST_OF_ONE_ID]


@attrs.frozen
class Verified:
    """A token that is valid.

    Attributes:
        claims: what it says.
        key: the key that signed it.
        until: when it stops being valid, in Unix seconds.
    """

    claims: Mapping[str, Any] = attrs.field(repr=False)
    key: TokenKey
    until: float


def verify(token: str, header: TokenHeader, keys: Iterable[TokenKey], rules: TokenRules, now: float) -> Verified:
    """Check the signature and the times of a token, and whom it is for.

    Args:
        token: the token.
        header: its header, from `read_header`.
        keys: the keys that `fitting` returned for it.
        rules: what it must be.
        now: the time in Unix seconds.

    Raises:
        InvalidToken: it is not valid; the message says why.
        ExpiredApiKey: it has expired.
    """
    signed, _, signature = token.rpartition(".")
    algorithm = algorithms()[header.alg]
    raw, message = _bytes(signature, "signature"), signed.encode("ascii")
    for key in keys:
        if algorithm.verify(message, key.key, raw):
            break
    else:
        raise InvalidToken("The signature of this token is not of its issuer.")
    claims = _object(signed.partition(".")[2], "payload")
    until = _check_times(claims, rules.leeway, now)
    _check_parties(claims, rules)
    return Verified(claims, key, until)


def _check_times(claims: Mapping[str, Any], leeway: float, now: float) -> float:
    times = {name: claims[name] for name in ("exp", "nbf", "iat") if name in claims}
    for name, value in times.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or abs(value) > 1e15:
            raise InvalidToken(f"The claim {name} of this token is not a time.")
    if "exp" not in times:
        raise InvalidToken("This token never expires (it has no exp), which is not accepted.")
    until: float = times["exp"] + leeway
    if now >= until:
        raise ExpiredApiKey("This token has expired. Get a new one from its issuer.")
    for name in ("nbf", "iat"):
        if times.get(name, now) > now + leeway:
            raise InvalidToken(f"This token is not valid yet ({name}). Is a clock wrong?")
    return until


def _check_parties(claims: Mapping[str, Any], rules: TokenRules) -> None:
    issuer, audience = claims.get("iss"), claims.get("aud", [])
    if rules.issuers is not None and (not isinstance(issuer, str) or issuer not in rules.issuers):
        raise InvalidToken("The issuer (iss) of this token is not one whose tokens are accepted here.")
    if rules.audiences is None:
        return
    named: Collection[Any] = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not any(isinstance(each, str) and each in rules.audiences for each in named):
        raise InvalidToken("This token was made for another program: its audience (aud) is not this gateway.")


def _key_of(found: Mapping[str, Any]) -> TokenKey | None:
    """Return a key of a key set; None if it cannot or may not verify signatures of tokens."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from jwt.exceptions import PyJWTError

    kid, kind, use = found.get("kid", ""), found.get("kty"), found.get("use", "sig")
    operations = found.get("key_ops", ["verify"])
    if not isinstance(kid, str) or len(kid) > _LONGEST_ID or use != "sig" or "d" in found:
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        if kind == "RSA":
            key = algorithms()["RS256"].from_jwk(dict(found))
            usable = _RSA if key.key_size in _RSA_BITS else frozenset()
        elif kind == "EC" and found.get("crv") in _CURVES:
            name = _CURVES[found["crv"]]
            key, usable = algorithms()[name].from_jwk(dict(found)), frozenset((name,))
        elif kind == "OKP" and found.get("crv") == "Ed25519":
            key, usable = algorithms()["EdDSA"].from_jwk(dict(found)), frozenset(("EdDSA",))
        else:
            return None
    except (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, AttributeError):
        return None
    if "alg" in found:
        usable &= {found["alg"]} if isinstance(found["alg"], str) else set()
    members = {name: found[name] for name in _PUBLIC if name in found}
    return TokenKey(kid, usable, dumps(members, sort_keys=True), key) if usable else None


def algorithms() -> Mapping[str, Any]:
    """Return PyJWT's algorithms. They take several MB, so only gateways that take tokens load them."""
    if not _LOADED:
        from jwt.algorithms import get_default_algorithms

        _LOADED.update(get_default_algorithms())
    return _LOADED


_LOADED: dict[str, Any] = {}


def _bytes(part: str, name: str) -> bytes:
    """Decode base64url without padding."""
    try:
        found = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise InvalidToken(f"The {name} of this token is not base64url.") from None
    return found


def _object(part: str, name: str) -> dict[str, Any]:
    """Decode a JSON object in which no name is repeated: two readers would see two tokens."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise InvalidToken(f"The {name} of this token repeats a name.")
        return members

    try:
        found = loads(_bytes(part, name).decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidToken(f"The {name} of this token is not a JSON object.")
    return found
