"""Writes items as lines: to standard output, or to a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zope.interface import implementer

from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination
from twisted_vllm.observability.logging.sinks import ISink


@implementer(IBlockingDestination)
class LineDestination:
    """Writes batches to a target of the log: a stream or a file."""

    def __init__(self, make: Callable[[], ISink]) -> None:
        """Open the target.

        Raises:
            DeliveryFailed: it cannot be opened.
        """
        try:
            self._sink = make()
        except OSError as error:
            raise DeliveryFailed(f"it cannot be opened: {error.strerror}", retryable=True) from None

    def deliver(self, batch: Sequence[bytes]) -> None:
        """Write a batch."""
        try:
            self._sink.write(b"\n".join(batch) + b"\n")
        except OSError as error:
            raise DeliveryFailed(f"it cannot be written: {error.strerror or 'an error'}", retryable=True) from None

    def close(self) -> None:
        """Close the target."""
        self._sink.close()
