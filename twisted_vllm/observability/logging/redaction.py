"""Takes secrets out of text before it is logged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import parse_qs, quote, quote_plus, unquote, urlsplit

MASK = "***"

#: a shorter secret is only taken out where it stands alone: a database password "vllm" must not blot out "twisted_vllm"
SHORT_SECRET_LENGTH = 8

#: what looks like a credential, whoever it belongs to; a group holds what stays in front of the mask
_CREDENTIALS = re.compile(
    r"\bsk-[\w-]{4,}"
    r"|(\bbearer\s+|\bauthorization['\"]?\s*[:=,]\s*b?['\"]?(?:\w+\s+)?)[^\s'\",;]+"
    r"|(\bopenai-insecure-api-key\.)[^\s'\",;]+"
    r"|(\bapi[-_]key['\"]?\s*[:=]\s*b?['\"]?)[^\s'\",;&)}\]]+"
    r"|(\w://[^\s:/@'\"]*:)[^\s/@'\"]+(?=@)",
    re.IGNORECASE,
)


class Redactor:
    """Replaces known secrets, and what looks like a credential, by ``***``."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Make a redactor.

        Args:
            secrets: the configured secrets: the master key, the servers' keys, the database's URL or password. Of a URL
                only the password is a secret.
        """
        spellings = {spelling for secret in secrets for value in _values(secret) for spelling in _spellings(value)}
        # The longest first, so that a secret which begins with another one is taken out whole.
        ordered = sorted(spellings, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(_pattern, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._secrets is not None:
            text = self._secrets.sub(MASK, text)
        return _CREDENTIALS.sub(_mask, text)

    def __repr__(self) -> str:
        return "<Redactor>"


def _values(secret: str) -> Iterable[str]:
    """What of a secret must not be shown."""
    if "://" not in secret:
        yield secret
        return
    parts = urlsplit(secret)
    if parts.password:
        yield from (parts.password, unquote(parts.password))
    yield from parse_qs(parts.query).get("password", ())


def _spellings(secret: str) -> Iterable[str]:
    """The forms in which a secret turns up: as it is, in a URL, in a repr, in JSON."""
    if secret.strip():
        yield from (secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1], json.dumps(secret)[1:-1])


def _pattern(spelling: str) -> str:
    escaped = re.escape(spelling)
    return escaped if len(spelling) >= SHORT_SECRET_LENGTH else rf"(?<![\w-]){escaped}(?![\w-])"


def _mask(match: re.Match[str]) -> str:
    return (match[1] or match[2] or match[3] or match[4] or "") + MASK
