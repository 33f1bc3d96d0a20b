"""Finds the credential of a request.

``Authorization: Bearer KEY``, which OpenAI's clients send, wins over the other headers that LiteLLM accepts. A browser
cannot set headers for a WebSocket except the subprotocols, so OpenAI's clients put the key among these.
"""

from __future__ import annotations

from collections.abc import Mapping

AUTHORIZATION = b"authorization"

#: the other headers that may hold a key, in order of precedence
KEY_HEADERS = (b"x-litellm-api-key", b"api-key", b"x-api-key")

#: all headers that may hold a key, in lower case. They are never forwarded to a server.
CREDENTIAL_HEADERS: frozenset[bytes] = frozenset((AUTHORIZATION, *KEY_HEADERS))

#: the header with the subprotocols that a WebSocket's client offers (RFC 6455 §11.3.4)
SUBPROTOCOLS = b"sec-websocket-protocol"

#: the prefix of a subprotocol that is a key
KEY_SUBPROTOCOL = b"openai-insecure-api-key."

_BEARER = b"bearer "


def _text(value: bytes) -> str | None:
    """Return a header's value as text; ``None`` if it is blank."""
    value = value.strip()
    if not value:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        # Obsolete field bytes (RFC 9110 §5.5): any decoding works that maps the same bytes to the same key.
        return value.decode("latin-1")


def credential_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the credential of a request.

    An ``Authorization`` with another scheme is skipped. Never raises.

    Args:
        headers: the request's headers: lower-case names, and the first value of each.

    Returns:
        The key without its scheme, never empty; ``None`` without a credential.
    """
    value = headers.get(AUTHORIZATION)
    if value is not None and value[:7].lower() == _BEARER and (found := _text(value[7:])) is not None:
        return found
    for name in KEY_HEADERS:
        value = headers.get(name)
        if value is None:
            continue
        value = value.strip()
        # SDKs that send their `api_key` in a configurable header often keep the scheme.
        if value[:7].lower() == _BEARER:
            value = value[7:]
        if value.lower() != b"bearer" and (found := _text(value)) is not None:
            return found
    offered = headers.get(SUBPROTOCOLS)
    if offered is None or b"websocket" not in headers.get(b"upgrade", b"").lower():
        return None
    return _offered_key(offered)


def without_keys(offered: bytes) -> bytes:
    """Return a list of subprotocols without the keys in it; unchanged if there are none.

    Args:
        offered: the values of all ``Sec-WebSocket-Protocol`` headers, joined with commas.
    """
    if KEY_SUBPROTOCOL not in offered.lower():
        return offered
    entries = [entry.strip() for entry in offered.split(b",")]
    return b", ".join(entry for entry in entries if entry and not _is_key(entry))


def _offered_key(offered: bytes) -> str | None:
    for entry in offered.split(b","):
        entry = entry.strip()
        if _is_key(entry) and (found := _text(entry[len(KEY_SUBPROTOCOL) :])) is not None:
            return found
    return None


def _is_key(entry: bytes) -> bool:
    return entry[: len(KEY_SUBPROTOCOL)].lower() == KEY_SUBPROTOCOL
