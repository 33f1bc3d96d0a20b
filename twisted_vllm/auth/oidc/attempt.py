"""A sign-in that was begun: what the browser keeps of it, sealed, until it comes back from the provider.

No process remembers it, so any worker of any gateway with the same secret can finish it. The cookie that holds it
ties the provider's answer to this browser (``state``), its ID token to this attempt (``nonce``), and its code to this
client (PKCE, RFC 7636).
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from urllib.parse import urlencode

import msgspec

from twisted_vllm.auth.oidc.provider import Provider
from twisted_vllm.auth.own_pages import own_page
from twisted_vllm.auth.sealing import Sealer, Unsealable
from twisted_vllm.config.secret import Secret

#: seconds in which a sign-in must be finished
ATTEMPT_SECONDS = 600.0
#: characters of what is sealed for a cookie: browsers take 4,096 bytes of name and value
LONGEST_SEALED = 3_900

_PURPOSE = b"twisted_vllm: sign-ins of the console"
_OWNER, _TOKEN_OWNER = "attempt", "ID token"
_RANDOM_BYTES = 32


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """A sign-in that was begun.

    Attributes:
        state: a random word that the answer must repeat.
        nonce: a random word that the ID token must repeat.
        verifier: what only this gateway knows of the request for the code (PKCE).
        issuer: the provider that was asked.
        client_id: as whom it was asked.
        redirect_uri: where it sends the browser.
        page: the page of the console that follows.
        began: when it was begun, in Unix seconds.
    """

    state: str
    nonce: str
    verifier: str
    issuer: str
    client_id: str
    redirect_uri: str
    page: str
    began: float

    def __repr__(self) -> str:
        return "<Attempt>"


class Attempts:
    """Makes attempts, and seals them."""

    def __init__(self, secret: Secret | None, randbytes: Callable[[int], bytes]) -> None:
        """Make it.

        Args:
            secret: the gateway's secret; None if it has none: then nobody can sign in so.
            randbytes: returns that many bytes, fit for secrets.
        """
        self._sealer = Sealer(secret, randbytes, _PURPOSE)
        self._randbytes = randbytes

    @property
    def can_seal(self) -> bool:
        """Whether there is a secret."""
        return self._sealer.can_seal

    def make(self, issuer: str, client_id: str, redirect_uri: str, page: str, now: float) -> Attempt:
        """Return a new attempt; the arguments are its attributes."""
        state, nonce, verifier = (_base64url(self._randbytes(_RANDOM_BYTES)) for _ in range(3))
        return Attempt(state, nonce, verifier, issuer, client_id, redirect_uri, own_page(page), now)

    def seal(self, attempt: Attempt) -> str:
        """Return an attempt as its cookie holds it."""
        return self._sealer.seal(Secret(msgspec.json.encode(attempt).decode("utf-8")), _OWNER)

    def open(self, sealed: str, now: float) -> Attempt | None:
        """Return the attempt of a cookie; None if it is none of ours, or too old."""
        if len(sealed) > LONGEST_SEALED:
            return None
        try:
            found = msgspec.json.decode(self._sealer.open(sealed, _OWNER).reveal(), type=Attempt)
        except (Unsealable, msgspec.DecodeError):
            # the latter: an older or newer gateway sealed it
            return None
        return found if now - found.began < ATTEMPT_SECONDS else None

    def seal_token(self, id_token: str) -> str:
        """Return the ID token of a sign-in as its cookie holds it until the person signs out; empty if it is too long.

        In clear it could be sent to programs that take it for a credential.
        """
        sealed = self._sealer.seal(Secret(id_token), _TOKEN_OWNER)
        return sealed if len(sealed) <= LONGEST_SEALED else ""

    def open_token(self, sealed: str) -> str:
        """Return the ID token of a cookie; empty if it is none of ours."""
        if len(sealed) > LONGEST_SEALED:
            return ""
        try:
            return self._sealer.open(sealed, _TOKEN_OWNER).reveal()
        except Unsealable:
            return ""


def authorization_url(provider: Provider, attempt: Attempt, scopes: Sequence[str], *, anew: bool = False) -> str:
    """Return where the browser goes to sign in (OpenID Connect Core 1.0 §3.1.2.1).

    Args:
        provider: the provider.
        attempt: the attempt.
        scopes: what is asked for.
        anew: whether the person must sign in there once more, perhaps as another.
    """
    challenge = _base64url(sha256(attempt.verifier.encode("ascii")).digest())
    asked = {
        "response_type": "code",
        "client_id": attempt.client_id,
        "redirect_uri": attempt.redirect_uri,
        "scope": " ".join(dict.fromkeys(("openid", *scopes))),
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    if anew:
        asked["prompt"] = "login"
    return with_query(provider.authorization_endpoint, asked)


def with_query(url: str, fields: dict[str, str]) -> str:
    """Return a URL with further fields in its query."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(fields)}"


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
