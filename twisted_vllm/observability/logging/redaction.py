"""Removes secrets from text before it is logged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from urllib.parse import parse_qs, quote, quote_plus, unquote, urlsplit

MASK = "***"

#: shorter secrets are masked only as whole words: the database password "vllm" must not mask part of "twisted_vllm"
SHORT_SECRET_LENGTH = 8

#: secrets of earlier settings that are masked still, the latest of them
MOST_FORMER = 100

#: what looks like a credential, JSON Web Tokens among them; a group is what stays in front of the mask. A key may hold
#: any visible character; the punctuation at its end may belong to the sentence. Its prefix may be percent-encoded, once
#: or more often.
_CREDENTIALS = re.compile(
    r"(?<![^\W_])(?:s|%(?:25)*73)(?:k|%(?:25)*6B)(?:-|%(?:25)*2D)(?!\.\.\.)\S{3,}[^\s.,;:'\"`)\]}>]"
    r"|(?<![\w-])eyJ[\w-]{5,}(?:\.|%(?:25)*2E)[\w-]{5,}(?:\.|%(?:25)*2E)[\w-]*"
    r"|(\bbearer\s+|\bauthorization['\"]?\s*[:=,]\s*b?['\"]?(?:\w+\s+)?)[^\s'\",;]+"
    r"|(\bopenai-insecure-api-key\.)[^\s'\",;]+"
    r"|(\bapi[-_]key['\"]?\s*[:=]\s*b?['\"]?)[^\s'\",;&)}\]]+"
    r"|(\w://[^\s:/@'\"]*:)[^\s/@'\"]+(?=@)",
    re.IGNORECASE,
)

#: one of these is in every credential, in lower case, unless it is percent-encoded
_MARKS = ("sk-", "eyj", "bearer", "authorization", "api-key", "api_key")
#: spellings of secrets that are looked for one by one: each takes about 0.1 µs for a kilobyte of text
_FEW = 64


class Redactor:
    """Masks known secrets, and what looks like a credential, with ``***``."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Make a redactor.

        Args:
            secrets: the configured secrets, such as the master key and the servers' keys. Of a URL, only the password
                is masked.
        """
        self._known: tuple[str, ...] = ()
        self._spelled: tuple[str, ...] = ()
        self._secrets: re.Pattern[str] | None = None
        self.prepare(secrets)()

    def prepare(self, secrets: Iterable[str]) -> Callable[[], None]:
        """Return what has other secrets masked, in place of those that are known. In any thread: it may take long.

        Some former ones are masked still: requests in flight may have them.
        """
        current = tuple(dict.fromkeys(secrets))
        former = [secret for secret in self._known if secret not in current]
        known = (*former[-MOST_FORMER:], *current)
        every = {spelling for secret in known for value in _values(secret) for spelling in spellings(value)}
        # The longest first, to mask a secret whole that begins with another one.
        ordered = sorted(every, key=len, reverse=True)
        pattern = re.compile("|".join(map(_pattern, ordered))) if ordered else None

        def apply() -> None:
            self._known, self._secrets, self._spelled = known, pattern, tuple(ordered)

        return apply

    def __call__(self, text: str) -> str:
        """Return the text with its secrets masked."""
        if self._secrets is not None:
            text = self._secrets.sub(MASK, text)
        return _CREDENTIALS.sub(_mask, text)

    def may_change(self, text: str) -> bool:
        """Return whether a text may hold what is masked, in a tenth of the time that masking takes."""
        if len(self._spelled) > _FEW or any(secret in text for secret in self._spelled):
            return True
        lower = text.lower() if text.isascii() else _folded(text)
        if any(mark in lower for mark in _MARKS):
            return True
        if "%" in lower and ("73" in lower or "6b" in lower or "2d" in lower):
            return True
        return "://" in lower and "@" in lower

    def __repr__(self) -> str:
        return "<Redactor>"


def _folded(text: str) -> str:
    """Return a text in lower case, with the letters that `re` takes for i, k and s."""
    return text.casefold().replace("\u0307", "").replace("\u0131", "i")


def _values(secret: str) -> Iterable[str]:
    """Yield the parts of a secret that must be masked."""
    if "://" not in secret:
        yield secret
        return
    parts = urlsplit(secret)
    if parts.password:
        yield from (parts.password, unquote(parts.password))
    yield from parse_qs(parts.query).get("password", ())


def spellings(secret: str) -> Iterable[str]:
    """Yield the spellings of a secret: plain, in a URL, in a repr, in JSON."""
    if secret.strip():
        yield from (secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1], json.dumps(secret)[1:-1])


def _pattern(spelling: str) -> str:
    escaped = re.escape(spelling)
    return escaped if len(spelling) >= SHORT_SECRET_LENGTH else rf"(?<![\w-]){escaped}(?![\w-])"


def _mask(match: re.Match[str]) -> str:
    return (match[1] or match[2] or match[3] or match[4] or "") + MASK
