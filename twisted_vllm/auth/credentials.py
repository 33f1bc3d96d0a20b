"""Where a request carries its credential.

``Authorization: Bearer K`` comes first, as OpenAI's clients send it; then the headers that LiteLLM's users know. Of a
WebSocket's handshake a browser can set the subprotocols alone: there OpenAI's clients put the key among them.
"""

from __future__ import annotations

from collections.abc import Mapping

AUTHORIZATION = b"authorization"

#: the other headers that may hold a key, the first one that does wins
KEY_HEADERS = (b"x-litellm-api-key", b"api-key", b"x-api-key")

#: every header, in lower case, that may hold a key: none of them may reach a vLLM server
CREDENTIAL_HEADERS: frozenset[bytes] = frozenset((AUTHORIZATION, *KEY_HEADERS))

#: the subprotocols that a WebSocket's client offers, separated by commas (RFC 6455 §11.3.4)
SUBPROTOCOLS = b"sec-websocket-protocol"

#: what the one of them begins with that is a key
KEY_SUBPROTOCOL = b"openai-insecure-api-key."

_BEARER = b"bearer "


def _text(value: bytes) -> str | None:
    """Return a header's value as text, or ``None`` where nothing but space is left of it."""
    value = value.strip()
    if not value:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        # Obsolete field bytes (RFC 9110 §5.5): any text will do that maps the same bytes to the same key.
        return value.decode("latin-1")


def credential_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the credential that a request carries.

    An ``Authorization`` of another scheme is not a credential of the gateway's: the next header is asked.

    Args:
        headers: the lower-case names of the request's headers and the first value of each.

    Returns:
        The key without its scheme, or ``None``. Never an empty string, and no input makes it raise.
    """
    value = headers.get(AUTHORIZATION)
    if value is not None and value[:7].lower() == _BEARER and (found := _text(value[7:])) is not None:
        return found
    for name in KEY_HEADERS:
        value = headers.get(name)
        if value is None:
            continue
        value = value.strip()
        # SDKs that put their `api_key` into a header of the operator's choice often keep the scheme.
        if value[:7].lower() == _BEARER:
            value = value[7:]
        if value.lower() != b"bearer" and (found := _text(value)) is not None:
            return found
    offered = headers.get(SUBPROTOCOLS)
    if offered is None or b"websocket" not in headers.get(b"upgrade", b"").lower():
        return None
    return _offered_key(offered)


def without_keys(offered: bytes) -> bytes:
    """Return a list of subprotocols as a server may see it: unchanged, or without the entries that are keys.

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
