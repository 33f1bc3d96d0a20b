"""A log's sink in memory."""

from __future__ import annotations

from zope.interface import implementer

from twisted_vllm.observability.logging.sinks import ISink


@implementer(ISink)
class MemorySink:
    """Keeps what is written in `data`."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.data += data

    def reopen(self) -> None:
        """Nothing to reopen."""

    def close(self) -> None:
        """Nothing to close."""
