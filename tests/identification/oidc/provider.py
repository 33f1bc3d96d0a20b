"""An OpenID provider in memory, which checks what it is asked and fails in every way that a test wants."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlsplit

import attrs
from treq.testing import RequestTraversalAgent
from twisted.web.resource import Resource

from tests.identification.issuer import ISSUER, SigningKey, key_set

CLIENT, SECRET = "gateway", "a secret:with%signs"
CALLBACK = "https://gateway.example.com/ui/oidc/callback"


class Answering(Resource):
    """A resource that a function answers."""

    isLeaf = True

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self._answer = answer

    def render(self, request: Any) -> Any:
        return self._answer(request)


@attrs.define
class Code:
    """A code that was given out."""

    asked: dict[str, str]
    claims: dict[str, Any]


class MemoryProvider:
    """The provider. Tests change its attributes.

    Attributes:
        document: its discovery document.
        keys: its keys; the first signs.
        status: the status of each answer.
        errors: answers of the token endpoint in place of tokens.
        userinfo: what its userinfo endpoint says.
        token: what a token answer has beside and in place of its own members.
        requests: the paths that were asked for.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.document: dict[str, Any] = {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/auth",
            "token_endpoint": f"{ISSUER}/token",
            "userinfo_endpoint": f"{ISSUER}/userinfo",
            "end_session_endpoint": f"{ISSUER}/logout",
            "jwks_uri": f"{ISSUER}/keys",
            "authorization_response_iss_parameter_supported": True,
        }
        self.keys = [SigningKey(alg="EdDSA")]
        self.status = 200
        self.errors: list[tuple[int, bytes]] = []
        self.userinfo: dict[str, Any] = {}
        self.token: dict[str, Any] = {}
        self.requests: list[str] = []
        self.posted: list[dict[str, str]] = []
        self.secret: str | None = SECRET
        self._codes: dict[str, Code] = {}
        root, known = Resource(), Resource()
        root.putChild(b".well-known", known)
        known.putChild(b"openid-configuration", Answering(lambda request: self._answer(request, self.document)))
        root.putChild(b"keys", Answering(lambda request: self._answer(request, json.loads(key_set(*self.keys)))))
        root.putChild(b"token", Answering(self._exchange))
        root.putChild(b"userinfo", Answering(self._userinfo))
        self.agent = RequestTraversalAgent(root)

    def _answer(self, request: Any, found: Any) -> bytes:
        self.requests.append(request.path.decode())
        request.setResponseCode(self.status)
        return json.dumps(found).encode()

    def sign_in(self, url: str, **claims: Any) -> dict[str, list[str]]:
        """Sign somebody in who was sent to a URL; return the fields with which the browser comes back."""
        asked = {name: value for name, [value] in parse_qs(urlsplit(url).query, strict_parsing=True).items()}
        assert url.startswith(f"{ISSUER}/auth?")
        assert asked["response_type"] == "code" and asked["code_challenge_method"] == "S256"
        code = f"c0de-{len(self._codes)}"
        self._codes[code] = Code(asked, claims)
        return {"code": [code], "state": [asked["state"]], "iss": [ISSUER]}

    def _exchange(self, request: Any) -> bytes:
        form = {name: value for name, [value] in parse_qs(request.content.read().decode()).items()}
        self.posted.append(form)
        if self.errors:
            status, body = self.errors.pop(0)
            self.requests.append("/token")
            request.setResponseCode(status)
            return body
        client, secret = form.get("client_id"), form.get("client_secret")
        sent = request.getHeader("authorization")
        if sent is not None:
            client, secret = map(unquote_plus, b64decode(sent.removeprefix("Basic ")).decode().split(":"))
        found = self._codes.pop(form["code"], None)
        challenge = urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        if (client, secret) != (CLIENT, self.secret):
            return self._refuse(request, "invalid_client")
        if found is None or form["redirect_uri"] != found.asked["redirect_uri"]:
            return self._refuse(request, "invalid_grant")
        if challenge != found.asked["code_challenge"] or form["grant_type"] != "authorization_code":
            return self._refuse(request, "invalid_grant")
        claims = {"aud": CLIENT, "nonce": found.asked["nonce"], **found.claims}
        id_token = self.keys[0].token(self._clock.seconds(), **claims)
        members = {"id_token": id_token, "access_token": "acce55", "token_type": "Bearer", **self.token}
        return self._answer(request, {name: value for name, value in members.items() if value is not None})

    def _refuse(self, request: Any, error: str) -> bytes:
        self.requests.append("/token")
        request.setResponseCode(401 if error == "invalid_client" else 400)
        return json.dumps({"error": error, "error_description": f"the provider's words: {error}"}).encode()

    def _userinfo(self, request: Any) -> bytes:
        assert request.getHeader("authorization") == "Bearer acce55"
        return self._answer(request, self.userinfo)
