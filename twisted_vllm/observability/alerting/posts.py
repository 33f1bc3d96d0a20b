"""Where alerts go: one POST of JSON for each."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_vllm.observability.delivery.interfaces import Bounds, IDestination
from twisted_vllm.observability.delivery.post import Poster

_HEADERS = {"Content-Type": "application/json"}

#: an alert that is older than an hour is no news
BOUNDS = Bounds(max_items=10_000, batch_items=1, linger=0.0, timeout=10.0, max_backoff=30.0, max_age=3_600.0)


@implementer(IDestination)
class Posts:
    """Posts each item to one URL."""

    def __init__(self, poster: Poster) -> None:
        """Post with this poster."""
        self._poster = poster

    def deliver(self, batch: Sequence[bytes]) -> Deferred[None]:
        """Post the one item of the batch; see `IDestination`."""
        (body,) = batch
        return self._poster.post(body, _HEADERS).addCallback(lambda _: None)

    def close(self) -> None:
        """Close the connection."""
        self._poster.close()
