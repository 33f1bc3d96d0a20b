"""What a provider says of itself (OpenID Connect Discovery 1.0, RFC 8414)."""

from __future__ import annotations

from collections.abc import Mapping
from json import loads
from typing import Any
from urllib.parse import urlsplit

import attrs

BASIC, POST = "client_secret_basic", "client_secret_post"
#: characters of an endpoint's URL
_LONGEST_URL = 2_048


@attrs.frozen
class Provider:
    """An OpenID provider.

    Attributes:
        issuer: its name, a URL.
        authorization_endpoint: where people sign in.
        token_endpoint: where codes are exchanged.
        userinfo_endpoint: where further claims are; None if there is none.
        end_session_endpoint: where people sign out; None if there is none.
        secret_by: how the client's secret is sent: `BASIC` or `POST`; None if the provider takes neither.
        names_itself: whether each of its answers names it (RFC 9207).
    """

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str | None
    end_session_endpoint: str | None
    secret_by: str | None
    names_itself: bool


def discovery_url(issuer: str) -> str:
    """Return where the provider's document is."""
    return f"{issuer.rstrip('/')}/.well-known/openid-configuration"


def read_provider(body: bytes, issuer: str) -> Provider:
    """Return the provider of a document.

    Args:
        body: the document, JSON.
        issuer: the issuer of the settings, whose document this must be: the same, character by character.

    Raises:
        ValueError: nobody can sign in with it; the message says why, for the operator, and repeats nothing unread.
    """
    try:
        found = loads(body)
    except (ValueError, RecursionError):
        raise ValueError("its discovery document is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("its discovery document is not a JSON object")
    _check_issuer(found.get("issuer"), issuer)
    if not _offers(found, "response_types_supported", "code", missing=True):
        raise ValueError("it does not answer with a code (response_types_supported)")
    if not _offers(found, "code_challenge_methods_supported", "S256", missing=True):
        raise ValueError("it does not take S256 for PKCE (code_challenge_methods_supported)")
    scheme = urlsplit(issuer).scheme
    return Provider(
        issuer,
        _endpoint(found, "authorization_endpoint", scheme),
        _endpoint(found, "token_endpoint", scheme),
        _endpoint(found, "userinfo_endpoint", scheme) if "userinfo_endpoint" in found else None,
        _endpoint(found, "end_session_endpoint", scheme) if "end_session_endpoint" in found else None,
        _secret_by(found),
        found.get("authorization_response_iss_parameter_supported") is True,
    )


def _check_issuer(found: object, issuer: str) -> None:
    if found == issuer:
        return
    if isinstance(found, str) and len(found) <= _LONGEST_URL and found.isascii() and found.isprintable():
        raise ValueError(f"its discovery document is of another issuer: write issuer: {found!r}, if that is meant")
    raise ValueError("its discovery document names no issuer")


def _endpoint(found: Mapping[str, Any], name: str, scheme: str) -> str:
    """Return the URL of an endpoint. What came over TLS must not lead to what does not."""
    url = found.get(name)
    if not isinstance(url, str):
        raise ValueError(f"its discovery document names no {name}")
    is_plain = url.isascii() and url.isprintable() and len(url) <= _LONGEST_URL and not set(' "<>\\^`{|}#') & set(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not is_plain or host is None or "@" in parts.netloc or parts.scheme not in ("https", scheme):
        raise ValueError(f"its {name} is not a URL of the same scheme")
    return url


def _offers(found: Mapping[str, Any], name: str, wanted: str, *, missing: bool) -> bool:
    """Return whether a list names something; `missing` where there is no list."""
    offered = found.get(name)
    if not isinstance(offered, list):
        return missing
    return wanted in offered


def _secret_by(found: Mapping[str, Any]) -> str | None:
    """Return how a secret is sent. Without a list it is Basic (OpenID Connect Discovery 1.0 §3)."""
    name = "token_endpoint_auth_methods_supported"
    if _offers(found, name, BASIC, missing=True):
        return BASIC
    return POST if _offers(found, name, POST, missing=False) else None
