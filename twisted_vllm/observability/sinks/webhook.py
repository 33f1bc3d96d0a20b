"""Posts items to a webhook: in a JSON array, as JSON lines, or one by one; signed and compressed if wanted."""

from __future__ import annotations

import gzip
import hmac
from collections.abc import Callable, Generator, Sequence
from hashlib import sha256
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from zope.interface import implementer

from twisted_vllm.config.secret import Secret
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IDestination
from twisted_vllm.observability.delivery.post import Poster

#: the header with the time and the signature of a batch
SIGNATURE_HEADER = "X-Vllm-Passthrough-Signature"


def signature(secret: Secret, body: bytes, seconds: int) -> str:
    """Return the value of `SIGNATURE_HEADER`: the HMAC-SHA256 of the time, a dot and the body as it is sent.

    Args:
        secret: what both sides know.
        body: the body, compressed if it is sent so.
        seconds: the time in Unix seconds.
    """
    digest = hmac.new(secret.reveal().encode(), b"%d.%b" % (seconds, body), sha256).hexdigest()
    return f"t={seconds},v1={digest}"


@implementer(IDestination)
class WebhookDestination:
    """Posts batches."""

    def __init__(
        self, poster: Poster, body: str, compression: str, secret: Secret | None, now: Callable[[], float]
    ) -> None:
        """Set up.

        Args:
            poster: posts to the URL.
            body: ``array``, ``lines`` or ``single``.
            compression: ``gzip`` or ``none``.
            secret: signs the batches; None does not.
            now: the time in Unix seconds.
        """
        self._poster = poster
        self._body = body
        self._compresses = compression == "gzip"
        self._secret = secret
        self._now = now
        #: how many items of a batch were taken one by one, before one failed
        self._taken: tuple[int, Sequence[bytes]] = (0, ())

    def deliver(self, batch: Sequence[bytes]) -> Deferred[None]:
        """Post a batch."""
        if self._body == "single":
            done: Deferred[None] = self._post_each(batch)
            return done
        if self._body == "lines":
            posting = self._post(b"\n".join(batch) + b"\n", "application/x-ndjson")
        else:
            posting = self._post(b"[" + b",".join(batch) + b"]", "application/json")
        return posting.addCallback(lambda _: None)

    def close(self) -> None:
        """Close the connection."""
        self._poster.close()

    @inlineCallbacks
    def _post_each(self, batch: Sequence[bytes]) -> Generator[Deferred[Any], Any, None]:
        # after a failure the same items come again: those that were taken are not posted twice
        taken, before = self._taken
        start = taken if list(before) == list(batch) else 0
        refused: DeliveryFailed | None = None
        for number in range(start, len(batch)):
            self._taken = (number, batch)
            try:
                yield self._post(batch[number], "application/json")
            except DeliveryFailed as error:
                if error.retryable:
                    raise
                refused = error
        self._taken = (0, ())
        if refused is not None and len(batch) == 1:
            raise refused

    def _post(self, body: bytes, content_type: str) -> Deferred[Any]:
        headers = {"Content-Type": content_type}
        if self._compresses:
            body = gzip.compress(body, 5, mtime=0)
            headers["Content-Encoding"] = "gzip"
        if self._secret is not None:
            headers[SIGNATURE_HEADER] = signature(self._secret, body, int(self._now()))
        return self._poster.post(body, headers)
