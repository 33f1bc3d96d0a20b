"""What a queue delivers to, and how a delivery fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Interface

MIB = 1024 * 1024


class DeliveryFailed(Exception):
    """A batch was not delivered.

    Attributes:
        message: why, in words for an operator; without URLs, headers or other secrets.
        retryable: whether the same batch may be taken later. Else it is dropped.
        retry_after: how long the destination asks to wait, in seconds; None if it does not say.
        too_large: whether half of the batch may be taken; a batch of one item is dropped.
    """

    def __init__(
        self, message: str, *, retryable: bool, retry_after: float | None = None, too_large: bool = False
    ) -> None:
        """Make the error; the arguments are the attributes."""
        super().__init__(message)
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.too_large = too_large


class IDestination(Interface):
    """Delivers batches, one at a time, in the reactor's thread."""

    def deliver(batch: Sequence[Any]) -> Deferred[None]:
        """Deliver a batch; the Deferred fires once it is taken.

        It fails with `DeliveryFailed`. After any other error, a mistake of the destination, the batch is dropped.
        The Deferred is cancelled if it takes too long. The batch may then be delivered a second time.
        """

    def close() -> None:
        """Release what it holds; nothing is delivered afterwards. Idempotent."""


class IBlockingDestination(Interface):
    """Delivers batches and may block: all methods are called in one thread of its own."""

    def deliver(batch: Sequence[Any]) -> None:
        """Deliver a batch.

        Raises:
            DeliveryFailed: it was not taken.
        """

    def close() -> None:
        """Release what it holds; nothing is delivered afterwards."""


@attrs.frozen
class Bounds:
    """The bounds of a queue.

    Attributes:
        max_items: the most items in memory.
        max_bytes: the most bytes in memory.
        batch_items: the most items of a batch.
        batch_bytes: the most bytes of a batch, unless one item is larger.
        linger: how long items are collected before a batch that is not full is delivered, in seconds.
        timeout: how long a delivery may take, in seconds.
        first_backoff: how long to wait after a first failure, in seconds; it doubles with each further one.
        max_backoff: the longest such wait, in seconds, also where the destination asks for a longer one.
        max_age: items that are older are dropped in place of being delivered, in seconds; None delivers all.
    """

    max_items: int = 10_000
    max_bytes: int = 16 * MIB
    batch_items: int = 512
    batch_bytes: int = MIB
    linger: float = 1.0
    timeout: float = 30.0
    first_backoff: float = 1.0
    max_backoff: float = 60.0
    max_age: float | None = None
