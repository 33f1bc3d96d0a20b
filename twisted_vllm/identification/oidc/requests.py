"""The gateway's own requests to the provider: the exchange of a code, and the question about further claims."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Generator, Iterable, Mapping
from json import loads
from typing import Any
from urllib.parse import quote_plus, urlencode

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from twisted_vllm.auth.oidc.provider import POST, Provider
from twisted_vllm.config.secret import Secret
from twisted_vllm.upstreams.own_requests import read_at_most

#: bytes of an answer, and seconds until it must be there
LARGEST_ANSWER, ANSWER_SECONDS = 131_072, 10.0
#: characters of what a provider says of an error, in the log
_MOST_SAID = 200

_ERROR = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_PLAIN = re.compile(r"[^ -~]+")


class ProviderError(Exception):
    """The provider's answer cannot be used; the message says why, for the operator, and holds no secret.

    Attributes:
        error: the error that it names (RFC 6749 §5.2); empty if it names none.
        is_down: whether the same request may work later.
    """

    def __init__(self, message: str, *, error: str = "", is_down: bool = False) -> None:
        super().__init__(message)
        self.error = error
        self.is_down = is_down


@attrs.frozen
class Client:
    """As whom the gateway asks.

    Attributes:
        id: its id.
        secret: its secret; None for a public client.
    """

    id: str
    secret: Secret | None


@attrs.frozen
class Tokens:
    """What a code was exchanged for."""

    id_token: str = attrs.field(repr=False)
    access_token: str | None = attrs.field(repr=False)


@implementer(IBodyProducer)
class _Body:
    """A form, which is small: it is written at once."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything is written."""

    def resumeProducing(self) -> None:
        """Everything is written."""

    def stopProducing(self) -> None:
        """Everything is written."""


class ProviderRequests:
    """Sends requests to a provider, which follow no redirects and are bounded in time and size."""

    def __init__(self, agent: IAgent, clock: IReactorTime) -> None:
        """Make it.

        Args:
            agent: sends them.
            clock: the reactor.
        """
        self._agent = agent
        self._clock = clock

    @inlineCallbacks
    def exchange(
        self, provider: Provider, client: Client, code: str, verifier: str, redirect_uri: str
    ) -> Generator[Deferred[Any], Any, Tokens]:
        """Return the tokens for a code (OpenID Connect Core 1.0 §3.1.3, RFC 7636 §4.5).

        Raises:
            ProviderError: there are none.
        """
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        secret = client.secret
        if secret is None:
            fields["client_id"] = client.id
        elif provider.secret_by is None:
            raise ProviderError("it takes a client's secret neither by client_secret_basic nor by client_secret_post")
        elif provider.secret_by == POST:
            fields |= {"client_id": client.id, "client_secret": secret.reveal()}
        else:
            # each is encoded before they are joined (RFC 6749 §2.3.1)
            pair = f"{quote_plus(client.id)}:{quote_plus(secret.reveal())}"
            headers["Authorization"] = f"Basic {b64encode(pair.encode('ascii')).decode('ascii')}"
        body = urlencode(fields).encode("ascii")
        secrets = (code, verifier, *(() if secret is None else (secret.reveal(),)))
        found = yield self._json("POST", provider.token_endpoint, headers, body, secrets)
        id_token, access_token = found.get("id_token"), found.get("access_token")
        if not isinstance(id_token, str):
            raise ProviderError("it gave no ID token (has the client the scope openid?)")
        return Tokens(id_token, access_token if isinstance(access_token, str) else None)

    def userinfo(self, provider: Provider, access_token: str) -> Deferred[dict[str, Any]]:
        """Return what the userinfo endpoint says. The Deferred fails with `ProviderError`."""
        if provider.userinfo_endpoint is None:
            raise ProviderError("it has no userinfo endpoint (leave out passthrough.console.oidc.userinfo)")
        headers = {"Authorization": f"Bearer {access_token}"}
        return self._json("GET", provider.userinfo_endpoint, headers, None, (access_token,))

    @inlineCallbacks
    def _json(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, secrets: Iterable[str]
    ) -> Generator[Deferred[Any], Any, dict[str, Any]]:
        sent = {"Accept": "application/json", "User-Agent": "twisted-vllm", **headers}
        asking = self._ask(method, url, sent, body)
        status, answer = yield asking.addTimeout(ANSWER_SECONDS, self._clock)
        found = _object(answer)
        if status == 200 and found is not None:
            return found
        error, said = _said(found or {}, secrets)
        raise ProviderError(
            f"it answers {status}{said}" if status != 200 else "its answer is not a JSON object",
            error=error,
            is_down=status >= 500 or status == 429,
        )

    @inlineCallbacks
    def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Generator[Deferred[Any], Any, tuple[int, bytes]]:
        sent = Headers({name: [value] for name, value in headers.items()})
        producer = None if body is None else _Body(body)
        response: Any = yield self._agent.request(method.encode("ascii"), url.encode("ascii"), sent, producer)
        read = yield read_at_most(response, LARGEST_ANSWER)
        return response.code, read


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _said(found: Mapping[str, Any], secrets: Iterable[str]) -> tuple[str, str]:
    """Return the error that a provider names, and what it says of it, without what must not be in a log."""
    error, description = found.get("error"), found.get("error_description")
    if not isinstance(error, str) or _ERROR.fullmatch(error) is None:
        return "", ""
    if not isinstance(description, str) or any(secret in description for secret in secrets):
        return error, f" ({error})"
    return error, f" ({error}: {_PLAIN.sub(' ', description)[:_MOST_SAID]})"
