"""What a queue delivers to, and how a delivery fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Interface

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MIB = 1024 * 1024


class DeliveryFailed(Exception):
    """A batch was not delivered.

    Attributes:
        message: why, in words for an operator; without URLs, headers or other secrets.
        retryable: whether the same batch may be taken later. Else it is dropped.
        retry_after: how long the destination asks to wait, in seconds; None if it does not say.
        too_large: whether half of the batch may be taken, because it is too large or one item is to blame; a batch of
            one item is dropped.
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

        It fails with `DeliveryFailed`. After any other error, a mistake, the batch is halved until the item that causes
        it is alone, which is dropped.
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


class SpoolFull(Exception):
    """The spool has its size, or its disk fails: the item is not in it."""


class SpooledItem(Protocol[T_co]):
    """An item that was read from a spool: see `Spooled`."""

    @property
    def item(self) -> T_co:
        """The item."""

    @property
    def size(self) -> int:
        """Its size in the spool, in bytes."""

    @property
    def time(self) -> float:
        """When it was put, in Unix seconds."""

    @property
    def place(self) -> Any:
        """Where it is."""


class Spool(Protocol[T]):
    """What a queue needs of a `DiskSpool`, which a gateway without one does not load."""

    unread: int
    failing: str

    @property
    def directory(self) -> Path:
        """Where its files are."""

    @property
    def size(self) -> int:
        """The size of its files in bytes."""

    @property
    def is_read(self) -> bool:
        """Whether all items that were not delivered are in memory."""

    @property
    def has_finished(self) -> bool:
        """Whether `clear` would remove a file."""

    def reconfigure(self, max_bytes: int) -> None:
        """See `DiskSpool`, likewise the others."""

    def open(self) -> None:
        """Open it."""

    def take_over(self) -> None:
        """Take over what others left."""

    def append(self, item: T, time: float, *, has_room: bool) -> tuple[Any, int, bool]:
        """Append an item."""

    def read(self) -> Sequence[SpooledItem[T]]:
        """Read the next items."""

    def delivered(self, places: Iterable[Any]) -> None:
        """Note that items were delivered."""

    def clear(self) -> None:
        """Remove what was delivered."""

    def close(self) -> None:
        """Close it."""
