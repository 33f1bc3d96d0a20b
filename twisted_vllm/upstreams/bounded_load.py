"""How much load a server may have before requests that prefer it go elsewhere.

Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016); HAProxy's ``hash-balance-factor``.
"""

from __future__ import annotations

_FACTOR = 1.5
#: few requests are never spread evenly, and a batch of four takes hardly longer than one
_REQUESTS = 4.0


def most_load(total: float, part: float) -> float:
    """Return the load up to which a server takes requests.

    Args:
        total: the load of all servers, with the request to place.
        part: the server's part of it by weight, from 0 to 1.
    """
    return _FACTOR * total * part + _REQUESTS
