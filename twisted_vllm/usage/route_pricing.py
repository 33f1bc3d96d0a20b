"""What holds for all requests that ask the same of the same server: found once, and not for each of them."""

from __future__ import annotations

import msgspec

from twisted_vllm.api_routes import Route
from twisted_vllm.usage.pricing import Prices
from twisted_vllm.usage.readers.registry import Reading, reading
from twisted_vllm.usage.readers.uploaded_audio import AUDIO_ROUTES

#: media types of answers that are remembered for each
MOST_READINGS = 16


class Readings(dict[bytes, Reading]):
    """How a route's successful answers are read, by their ``Content-Type``, as :func:`.readers.reading` says."""

    def __init__(self, route: str) -> None:
        """Begin with none; `route` is the path that the server sees."""
        super().__init__()
        self._route = route

    def __missing__(self, content_type: bytes) -> Reading:
        if len(self) >= MOST_READINGS:
            self.clear()
        found = self[content_type] = reading(self._route, content_type)
        return found


class RoutePricing:
    """What such requests cost, and how their answers are read.

    Attributes:
        route: the path that the server sees, without its query, as text.
        prices: what the model costs.
        takes_model: whether they use a model.
        hears: whether they may upload audio.
        readings: how their answers are read that have no ``Content-Encoding``.
        target: what they ask of whom, as the ledger keeps it; None before their first row.
    """

    __slots__ = ("hears", "prices", "readings", "route", "takes_model", "target")

    def __init__(self, route: Route, prices: Prices) -> None:
        """Find out what follows from the route.

        Args:
            route: what they ask for.
            prices: what the model costs.
        """
        self.route = route.path
        self.prices = prices
        self.takes_model = route.takes_model
        self.hears = route.path in AUDIO_ROUTES
        self.readings = Readings(route.path)
        self.target: msgspec.Raw | None = None
