"""Tells whether two processes have the same settings, without showing them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from typing import Any

import attrs
import msgspec

from twisted_vllm.config.secret import Secret


class Fingerprint(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Digests of settings.

    Attributes:
        shape: of the names of the settings. Newer code may have others, and then the values cannot be compared.
        values: of the values, secrets included: it is compared, and never shown.
    """

    shape: bytes
    values: bytes

    def differs(self, other: Fingerprint) -> bool:
        """Return whether two are known to be of different settings."""
        return self.shape == other.shape and self.values != other.values


def fingerprint_of(settings: Any) -> Fingerprint:
    """Return the digests of settings."""
    values = hashlib.sha256()
    names: set[str] = set()
    _add(values, names, settings)
    return Fingerprint(hashlib.sha256("\n".join(sorted(names)).encode()).digest(), values.digest())


def _add(found: Any, names: set[str], value: Any) -> None:
    if isinstance(value, Secret):
        value = value.reveal()
    if attrs.has(type(value)):
        # what makes no difference: where a value was written, and what follows from others
        fields = [each for each in attrs.fields(type(value)) if each.eq]
        name = f"{type(value).__name__}({','.join(each.name for each in fields)})"
        names.add(name)
        found.update(name.encode())
        for each in fields:
            _add(found, names, getattr(value, each.name))
    elif isinstance(value, Mapping):
        found.update(b"{%d" % len(value))
        for key, inner in value.items():
            _add(found, names, key)
            _add(found, names, inner)
    elif isinstance(value, tuple | list):
        found.update(b"[%d" % len(value))
        for inner in value:
            _add(found, names, inner)
    elif isinstance(value, set | frozenset):
        found.update(b"<%d" % len(value))
        for text in sorted(map(repr, value)):
            found.update(text.encode())
    elif isinstance(value, Enum):
        found.update(repr(value.value).encode())
    elif isinstance(value, str | bytes | int | float | bool) or value is None:
        found.update(f"{type(value).__name__}:{value!r};".encode())
    else:
        found.update(f"{type(value).__qualname__}:{value!s};".encode())
