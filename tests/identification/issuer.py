"""An issuer of tokens for tests: its keys, its key set, and tokens of every kind, valid or not."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

ISSUER, AUDIENCE = "https://login.example.com", "vllm"

_ALGORITHMS: Any = get_default_algorithms()


def encoded(data: bytes) -> str:
    """Return base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


class SigningKey:
    """A private key with its id."""

    def __init__(self, kid: str = "k1", alg: str = "RS256", bits: int = 2048) -> None:
        self.kid = kid
        self.alg = alg
        self.private: Any
        if alg.startswith(("RS", "PS")):
            self.private = rsa.generate_private_key(65537, bits)
        elif alg == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
        else:
            curve = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}[alg]
            self.private = ec.generate_private_key(curve)

    def public_jwk(self, **members: Any) -> dict[str, Any]:
        """Return the public key as in a key set."""
        found = json.loads(_ALGORITHMS[self.alg].to_jwk(self.private.public_key()))
        found.pop("key_ops", None)
        return {**found, "kid": self.kid, "use": "sig", **members}

    def sign(self, message: bytes, alg: str | None = None) -> bytes:
        """Return a signature."""
        return bytes(_ALGORITHMS[alg or self.alg].sign(message, self.private))

    def token(self, now: float, header: dict[str, Any] | None = None, alg: str | None = None, **claims: Any) -> str:
        """Return a token that is valid for ten minutes, unless the claims say otherwise; None leaves one out."""
        head = {"alg": alg or self.alg, "typ": "JWT", "kid": self.kid, **(header or {})}
        body = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600, **claims}
        return self.signed(
            json.dumps({name: value for name, value in head.items() if value is not None}),
            json.dumps({name: value for name, value in body.items() if value is not None}),
            alg,
        )

    def signed(self, header: str, claims: str, alg: str | None = None) -> str:
        """Return a token of two JSON texts."""
        message = f"{encoded(header.encode())}.{encoded(claims.encode())}"
        return f"{message}.{encoded(self.sign(message.encode(), alg))}"


def key_set(*keys: SigningKey | dict[str, Any]) -> bytes:
    """Return a key set."""
    found = [key.public_jwk() if isinstance(key, SigningKey) else key for key in keys]
    return json.dumps({"keys": found}).encode()
