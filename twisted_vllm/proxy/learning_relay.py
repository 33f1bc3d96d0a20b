"""A relay that learns which server stores a response whose id the server chose."""

from __future__ import annotations

from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.relay import Forwarding, Relay
from twisted_vllm.upstreams.response_places import BEGINNING, ResponsePlaces, id_at_beginning


class LearningRelay(Relay):
    """Relays the answer to an administrator's ``POST /v1/responses``, and reads its id."""

    def __init__(self, request: GatewayRequest, forwarding: Forwarding | None, places: ResponsePlaces) -> None:
        """Relay to the client of `request`; `places` remembers what was learned."""
        super().__init__(request, forwarding)
        self._places: ResponsePlaces | None = places
        self._beginning = b""

    def dataReceived(self, data: bytes) -> None:
        """Write a piece, and look for the id in the first of them."""
        places, server, response = self._places, self.context.server, self._response
        if places is not None and server is not None and response is not None:
            self._beginning += data[:BEGINNING]
            found = id_at_beginning(self._beginning)
            if found is not None and response.code == 200:
                places.keep(found, server.name)
            if found is not None or len(self._beginning) >= BEGINNING:
                self._places, self._beginning = None, b""
        super().dataReceived(data)
