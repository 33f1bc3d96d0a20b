"""Which server has a stored response whose id the server chose: those of administrators and of open mode.

The id of a virtual key's response tells its server (:mod:`twisted_vllm.proxy.response_ids`). Here is what was learned
from passing answers. It is a hint that may be wrong, for example after a restart of the server: whoever uses it gets
the server's own 404 then.
"""

from __future__ import annotations

import re

from twisted_vllm.bounded_cache import BoundedCache

#: remembered responses, and the maximum length of an id with its server's name, in characters
MAX_PLACES, MAX_SIZE = 20_000, 300
#: bytes of an answer's beginning in which its id must stand; vLLM 0.32 writes it first, after an event's name
BEGINNING = 2_048

_ID = re.compile(rb'"id"\s*:\s*"([0-9A-Za-z._~:@=+-]{1,200})"')


class ResponsePlaces:
    """Remembers the servers of stored responses, the newest of them."""

    def __init__(self) -> None:
        """Know nothing."""
        self._places: BoundedCache[str, str] = BoundedCache(MAX_PLACES, MAX_SIZE)

    def __len__(self) -> int:
        """Return how many responses are remembered."""
        return len(self._places)

    def keep(self, response_id: str, server: str) -> None:
        """Remember the name of the server that has a response."""
        self._places.keep(response_id, server, len(response_id) + len(server))

    def find(self, response_id: str) -> str | None:
        """Return the name of the server that has a response, or None if that is not known."""
        return self._places.get(response_id)


def id_at_beginning(answer: bytes) -> str | None:
    """Return the id of the response that an answer to ``POST /v1/responses`` begins with.

    Args:
        answer: the first bytes of the JSON, or of the stream, whose first event repeats the response.

    Returns:
        The id; None if it is not there (yet).
    """
    found = _ID.search(answer, 0, BEGINNING)
    return None if found is None else found[1].decode("ascii")
