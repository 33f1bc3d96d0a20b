"""A resolver of names that the test answers for."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IHostnameResolver
from zope.interface import implementer


@implementer(IHostnameResolver)
class FakeResolver:
    """Answers as the test says.

    Attributes:
        addresses: the answer for every name; None to hold it back.
        asked: the names it was asked for.
    """

    def __init__(self, *addresses: str) -> None:
        self.addresses: tuple[str, ...] | None = addresses
        self.asked: list[str] = []
        self._held: list[Any] = []

    def resolveHostName(
        self, resolutionReceiver: Any, hostName: str, portNumber: int = 0, *args: Any, **kwargs: Any
    ) -> Any:
        self.asked.append(hostName)
        resolutionReceiver.resolutionBegan(self)
        if self.addresses is None:
            self._held.append(resolutionReceiver)
        else:
            _answer(resolutionReceiver, self.addresses)
        return self

    def release(self, *addresses: str) -> None:
        """Answer what was held back."""
        held, self._held = self._held, []
        for receiver in held:
            _answer(receiver, addresses)

    def cancel(self) -> None:
        """Stop."""


def _answer(receiver: Any, addresses: tuple[str, ...]) -> None:
    for address in addresses:
        receiver.addressResolved(IPv4Address("TCP", address, 8000))
    receiver.resolutionComplete()
