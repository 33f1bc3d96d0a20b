"""The administrator's key: itself, or its SHA-256, so that the file need not hold it."""

from __future__ import annotations

import re

from twisted_vllm.config.place import Place, Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.shape import secret

#: what stands before a hash
HASH_PREFIX = "sha256:"

_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")


def master_key(value: object, place: Place) -> Secret:
    """Check for the administrator's key, or for ``sha256:`` and the 64 hex digits of its hash."""
    found = secret(value, place)
    if found.reveal().startswith(HASH_PREFIX) and hash_of(found) is None:
        raise Rejected('must have 64 hex digits after sha256: (printf %s "$KEY" | sha256sum)')
    return found


def hash_of(key: Secret) -> str | None:
    """Return the hash that a master key was given as, in lower case, or ``None`` where it is the key itself."""
    found = _HASH.fullmatch(key.reveal())
    return None if found is None else found[1].lower()
