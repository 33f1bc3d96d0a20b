"""URLs that the gateway calls: webhooks, key sets, services. No message repeats one: it may hold a token."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from twisted_vllm.config.problems import Place, Rejected

_NOT_SENT = re.compile(r"[^\x21-\x7e]|[\\#]")
#: hosts whose traffic does not leave the machine
LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


def web_url(found: str, place: Place, example: str, *, instead: str = "", in_clear: str = "") -> str:
    """Check for an HTTP URL, and return it.

    Args:
        found: the text.
        place: its place.
        example: a valid URL of its kind.
        instead: where a user name and a password belong; empty if nowhere.
        in_clear: what follows from ``http://`` to another machine, for a warning; empty if there is none.

    Raises:
        Rejected: it is no such URL.
    """
    if _NOT_SENT.search(found):
        raise Rejected("holds a space, a backslash, a fragment or a character outside ASCII")
    try:
        parts = urlsplit(found)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Rejected(f"is not a URL with a valid host and port (such as {example})") from None
    if parts.scheme not in ("http", "https") or not host:
        schemes = "https://" if in_clear else "http:// or https://"
        raise Rejected(f"must begin with {schemes} (such as {example})")
    if "@" in parts.netloc:
        raise Rejected("must not hold a user name or a password" + (f" ({instead})" if instead else ""))
    if in_clear and parts.scheme == "http" and host not in LOOPBACK:
        place.warn(f"is not https://: {in_clear}")
    return found
