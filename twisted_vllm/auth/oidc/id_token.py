"""What an ID token must say beyond what every token must (OpenID Connect Core 1.0 §3.1.3.7)."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import new
from hmac import compare_digest
from typing import Any

from twisted_vllm.errors import InvalidToken, TokenNotAllowed

#: characters of a subject (OpenID Connect Core 1.0 §2)
_LONGEST_SUBJECT = 255
#: claims by which others grant things to a token, and which say nothing of a person
_OF_ACCESS = ("scope", "scp")


def check_id_token(
    claims: Mapping[str, Any], *, client_id: str, nonce: str, alg: str, access_token: str | None
) -> None:
    """Check the claims of an ID token whose signature, times, issuer and audience were checked.

    Args:
        claims: what it says.
        client_id: the client that asked for it.
        nonce: the word that the attempt sent.
        alg: the signature's algorithm, which says how the access token is hashed.
        access_token: the access token that came with it.

    Raises:
        InvalidToken: it is not valid; the message says why, for the operator.
    """
    if not isinstance(claims.get("nonce"), str) or not _equal(claims["nonce"], nonce):
        raise InvalidToken("The nonce of the ID token is not that of the attempt.")
    party = claims.get("azp")
    if party is None and isinstance(claims.get("aud"), list) and len(claims["aud"]) > 1:
        raise InvalidToken("The ID token is for several audiences and does not say which asked for it (azp).")
    if party is not None and party != client_id:
        raise InvalidToken("The ID token was asked for by another client (azp).")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT or not subject.isprintable():
        raise InvalidToken(f"The ID token has no subject (sub) of at most {_LONGEST_SUBJECT} characters.")
    if "iat" not in claims:
        raise InvalidToken("The ID token does not say when it was made (iat).")
    expected = claims.get("at_hash")
    if expected is None or access_token is None:
        return
    if not isinstance(expected, str) or not _equal(expected, half_hash(access_token, alg)):
        raise InvalidToken("The ID token is not of the access token that came with it (at_hash).")


def half_hash(text: str, alg: str) -> str:
    """Return the left half of a hash as ``at_hash`` has it (OpenID Connect Core 1.0 §3.1.3.6)."""
    digest = new(f"sha{'512' if alg == 'EdDSA' else alg[-3:]}", text.encode("utf-8", "surrogatepass")).digest()
    return urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode("ascii")


def claims_of_person(claims: Mapping[str, Any], more: Mapping[str, Any], user_claim: str) -> dict[str, Any]:
    """Return what the provider says of a person.

    Args:
        claims: the claims of the ID token, which win.
        more: those of the userinfo endpoint; empty if it was not asked.
        user_claim: the claim with the user's id.

    Raises:
        InvalidToken: the userinfo is of somebody else.
        TokenNotAllowed: the user's id is an e-mail address that the provider did not verify.
    """
    if more and more.get("sub") != claims["sub"]:
        raise InvalidToken("The userinfo endpoint answers about another subject (sub).")
    found = {**more, **claims}
    for name in _OF_ACCESS:
        found.pop(name, None)
    if found.get("email_verified", True) in (False, "false"):
        # anybody can write anybody's address there
        found.pop("email", None)
        if user_claim == "email":
            raise TokenNotAllowed("The provider has not verified the e-mail address of this account. Verify it there.")
    return found


def _equal(one: str, other: str) -> bool:
    return compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))
