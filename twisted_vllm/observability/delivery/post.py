"""Posts to a URL of the operator's; failures are `DeliveryFailed`.

Nothing that it raises holds the URL, a header or a body: each may hold a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import attrs
from OpenSSL import SSL, crypto
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionRefusedError, DNSLookupError, TimeoutError, UserError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.iweb import IAgent

from twisted_vllm.config.secret import Secret
from twisted_vllm.observability.delivery.bounded_answers import BoundedEndpoints
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed

#: bytes of an answer that are read, so that its connection can be used again
MAX_ANSWER = 65_536
#: how long a connection to the destination is kept, and how long one may take to be made, in seconds
IDLE_SECONDS, CONNECT_SECONDS = 10.0, 10.0

#: what another attempt may change (RFC 9110 §15, RFC 6585); all of 5xx too, but 501 and 505
_RETRYABLE = frozenset((408, 421, 425, 429))
_NOT_RETRYABLE = frozenset((501, 505))
_TOO_LARGE = 413

_WRAPPED = (ResponseNeverReceived, ResponseFailed, RequestTransmissionFailed, RequestGenerationFailed)


@attrs.frozen
class Answer:
    """The answer to a POST.

    Attributes:
        status: the status.
        body: the body, if it was asked for.
    """

    status: int
    body: bytes = b""


def http_agent(reactor: Any, ca_file: str | None = None) -> tuple[IAgent, HTTPConnectionPool]:
    """Return an agent that keeps one connection, and its pool, which `Poster` closes.

    Args:
        reactor: the reactor.
        ca_file: a file of certificates (PEM) that is trusted in place of the system's authorities.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no certificate.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = 1
    # typed as an int, and passed to callLater
    pool.cachedConnectionTimeout = int(IDLE_SECONDS)
    policy = BrowserLikePolicyForHTTPS(None if ca_file is None else _authorities(ca_file))
    return Agent.usingEndpointFactory(reactor, BoundedEndpoints(reactor, policy, CONNECT_SECONDS), pool=pool), pool


class Poster:
    """Posts to one URL, follows no redirects, and keeps its connection."""

    def __init__(self, agent: IAgent, url: Secret, headers: Mapping[str, Secret], pool: Any = None) -> None:
        """Set up.

        Args:
            agent: sends the requests, as `http_agent` makes it.
            url: the URL, which may hold a token.
            headers: further headers of each request.
            pool: the agent's connections, which `close` closes.
        """
        self._client = HTTPClient(agent)
        self._url = url
        self._headers = headers
        self._pool = pool
        #: whether the receiver closes the connection of its last answer
        self._is_closing = False

    def post(self, body: bytes, headers: Mapping[str, str], *, read: bool = False) -> Deferred[Answer]:
        """Post a body. Cancelling the Deferred closes the connection.

        Args:
            body: the body.
            headers: the headers of this request, such as ``Content-Type``; those of the settings win.
            read: whether to return the answer's body, of at most `MAX_ANSWER` bytes.

        Returns:
            The answer, whose status is 2xx. Else the Deferred fails with `DeliveryFailed`.
        """
        given = {name.lower(): secret.reveal() for name, secret in self._headers.items()}
        sent: dict[bytes | str, bytes | str] = {"user-agent": "twisted-vllm"}
        sent.update((name.lower(), value) for name, value in headers.items())
        sent.update(given)
        if self._is_closing:
            self.close()
        posting: Deferred[Any] = self._client.request(
            "POST", self._url.reveal(), data=body, headers=sent, allow_redirects=False, unbuffered=True
        )
        posting.addCallback(self._answered)
        posting.addCallback(_read, read)
        posting.addErrback(_failed)
        return posting

    def _answered(self, response: Any) -> Any:
        """Note whether the connection ends with its answer, as one of HTTP/1.0 does: Twisted keeps it in its pool."""
        self._is_closing = response.version[1:] == (1, 0)
        return response

    def close(self) -> None:
        """Close the connection."""
        if self._pool is not None:
            self._pool.closeCachedConnections()


def _authorities(file: str) -> Any:
    text = Path(file).read_bytes()
    marker = b"-----BEGIN CERTIFICATE-----"
    found = [marker + piece for piece in text.split(marker)[1:]]
    if not found:
        raise ValueError("it holds no certificate")
    try:
        return trustRootFromCertificates([Certificate.loadPEM(piece) for piece in found])
    except crypto.Error:
        raise ValueError("it holds a certificate that cannot be read") from None


def _read(response: Any, read: bool) -> Deferred[Answer]:
    """Check the status, and read the body to its end."""
    body = _Body(response.code, read)
    response.deliverBody(body)
    status, headers = response.code, response.headers
    if 200 <= status < 300:
        return body.done

    def refuse(answer: Answer) -> Answer:
        is_retryable = status in _RETRYABLE or (status >= 500 and status not in _NOT_RETRYABLE)
        said = headers.getRawHeaders("retry-after", [""])[0]
        where = " (a redirect, which is not followed: write the URL where it leads)" if 300 <= status < 400 else ""
        raise DeliveryFailed(
            f"it answers {status}{where}",
            retryable=is_retryable,
            retry_after=retry_after(said, datetime.now(UTC)),
            too_large=status == _TOO_LARGE,
        )

    return body.done.addCallback(refuse)


def retry_after(said: str, now: datetime) -> float | None:
    """Return the seconds of ``Retry-After`` (RFC 9110 §10.2.3); None if there are none.

    Args:
        said: the header's value: seconds, or a date.
        now: the time.
    """
    said = said.strip()
    if said.isascii() and said.isdigit():
        return float(said[:9])
    try:
        at = parsedate_to_datetime(said)
        return max((at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _failed(failure: Failure) -> Failure:
    """Say in words of the operator why there is no answer."""
    if failure.check(DeliveryFailed, CancelledError):
        return failure
    error: BaseException = failure.value or ConnectError()
    while isinstance(error, _WRAPPED) and error.reasons:
        error = error.reasons[0].value or ConnectError()
    if isinstance(error, CancelledError):
        return Failure(error)
    return Failure(DeliveryFailed(_words(error), retryable=True))


def _words(error: BaseException) -> str:
    if isinstance(error, DNSLookupError):
        return "its name is not known"
    if isinstance(error, ConnectionRefusedError):
        return "it refuses connections"
    if isinstance(error, (TimeoutError, UserError)):
        return f"it did not accept a connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, SSL.Error):
        reasons = [str(entry[-1]) for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
        return f"TLS failed: {', '.join(reasons) or 'no reason is known'}"
    if isinstance(error, ConnectError):
        return f"it cannot be reached (error {error.osError})"
    # an error's own text may hold the URL
    return f"the connection broke ({type(error).__name__})"


class _Body(Protocol):
    """Reads a body to its end, and keeps it if it was asked for."""

    transport: Any = None

    def __init__(self, status: int, keeps: bool) -> None:
        self.done: Deferred[Answer] = Deferred(lambda _: self._cut())
        self._status = status
        self._keeps = keeps
        self._size = 0
        self._received = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._keeps:
            self._received += data[: MAX_ANSWER - len(self._received)]
        if self._size > MAX_ANSWER:
            # the status is what counts
            self._finish()
            self._cut()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone) or not self._keeps:
            self._finish()
        elif not self.done.called:
            self.done.errback(reason)

    def _finish(self) -> None:
        if not self.done.called:
            self.done.callback(Answer(self._status, bytes(self._received)))

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection() if hasattr(self.transport, "abortConnection") else None
