"""Finds the credential of a request.

``Authorization: Bearer KEY``, which OpenAI's clients send, wins over the other headers that LiteLLM accepts; without
any of these, ``Authorization: KEY`` counts, which some tools send. A browser cannot set headers for a WebSocket except
the subprotocols, so OpenAI's clients put the key among these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from twisted_vllm.http.headers import KEY_HEADERS

AUTHORIZATION = b"authorization"

#: the header with the subprotocols that a WebSocket's client offers (RFC 6455 §11.3.4)
SUBPROTOCOLS = b"sec-websocket-protocol"

_SECRET_HEADERS = (AUTHORIZATION, *KEY_HEADERS, b"proxy-authorization", SUBPROTOCOLS)

#: the prefix of a subprotocol that is a key
KEY_SUBPROTOCOL = b"openai-insecure-api-key."

_BEARER = b"bearer "

#: a key without a scheme: one word
_ALONE = re.compile(rb"\S+")

_MAX_DECODINGS = 4
_SEGMENT = re.compile(r"[^\s/]+")
_WORD = re.compile(r"\S+")

#: shorter texts are no keys, which have 16 characters or more: in open mode, "m" may be sent in place of a key
SHORTEST_SECRET = 8


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

    An ``Authorization`` with another scheme is skipped; one without a scheme counts if no other header has a key. Never
    raises.

    Args:
        headers: the request's headers: lower-case names, and the first value of each.

    Returns:
        The key without its scheme, never empty; ``None`` without a credential.
    """
    authorization = headers.get(AUTHORIZATION, b"")
    if authorization[:7].lower() == _BEARER and (found := _text(authorization[7:])) is not None:
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
    if _ALONE.fullmatch(authorization) and authorization.lower() != b"bearer":
        return _text(authorization)
    offered = headers.get(SUBPROTOCOLS)
    if offered is None or b"websocket" not in headers.get(b"upgrade", b"").lower():
        return None
    return _offered_key(offered)


def carried(headers: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """Return whatever a request carries where a credential may stand, valid or not, without the scheme.

    The log must not show it wherever else it stands. Bytes that are not ASCII are decoded in both ways in which the
    gateway decodes text of clients.

    Args:
        headers: as in `credential_of`.
    """
    found = []
    for name in _SECRET_HEADERS:
        value = headers.get(name)
        if value is None:
            continue
        if name == SUBPROTOCOLS:
            found += [entry[len(KEY_SUBPROTOCOL) :] for each in value.split(b",") if _is_key(entry := each.strip())]
        else:
            scheme, space, rest = value.strip().partition(b" ")
            found.append(rest.strip() if space and scheme.isalpha() else scheme + space + rest)
    secrets = []
    for secret in found:
        if len(secret) >= SHORTEST_SECRET:
            secrets.append(secret.decode("latin-1"))
            if not secret.isascii():
                secrets.append(secret.decode("utf-8", "replace"))
    return tuple(secrets)


def decoded(text: str) -> str:
    """Return a text without percent escapes, however often they were applied: by a client, its library, a proxy."""
    for _ in range(_MAX_DECODINGS):
        if "%" not in text:
            break
        text = unquote(text)
    return text


def strike_out(text: str, secrets: Iterable[str], mask: str) -> str:
    """Return a text with a mask in place of secrets, plain or percent-encoded.

    Args:
        text: a path, or words.
        secrets: what must not be shown.
        mask: what is shown in place of it.
    """
    secrets = tuple(secrets)
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, mask)
    if "%" not in text:
        return text
    whole = decoded(text)
    plain = [shown for secret in secrets if (shown := decoded(secret)) in whole]
    if not plain:
        return text

    def struck(found: re.Match[str]) -> str:
        word = found[0]
        if "%" not in word:
            return word
        shown = decoded(word)
        return mask if any(secret in shown for secret in plain) else word

    # words after segments: a secret may hold a slash
    return _WORD.sub(struck, _SEGMENT.sub(struck, text))


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
