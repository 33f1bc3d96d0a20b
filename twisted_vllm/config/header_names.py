"""Names of headers that may be kept with what a request used."""

from __future__ import annotations

import re

from twisted_vllm.config.place import Place, Rejected
from twisted_vllm.config.shape import text

_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}")
_SECRET_HEADERS = frozenset(
    ("authorization", "proxy-authorization", "cookie", "x-litellm-api-key", "api-key", "x-api-key")
) | {"sec-websocket-protocol"}


def header_name(value: object, place: Place) -> str:
    """Check for the name of a header that may be kept, and return it in lower case."""
    found = text(value, place).lower()
    if not _HEADER_NAME.fullmatch(found):
        raise Rejected("must be the name of a header: letters, digits and hyphens")
    if found in _SECRET_HEADERS:
        raise Rejected("holds a credential, which is never kept")
    return found
