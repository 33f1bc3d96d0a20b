"""Tells whether a gateway has the secret with which the keys of servers in a backup are encrypted."""

from __future__ import annotations

import os

from twisted_vllm.auth.sealing import Sealer, Unsealable
from twisted_vllm.config.secret import Secret

#: its key opens nothing else
_PURPOSE = b"twisted_vllm: check of a backup"
_OWNER = "backup"


def seal(secret: Secret | None) -> str:
    """Return a random text that is encrypted with a secret; empty without one.

    It tells no more of the secret than the encrypted keys beside it do, and its text is of no use.
    """
    if secret is None:
        return ""
    return Sealer(secret, os.urandom, _PURPOSE).seal(Secret(os.urandom(16).hex()), _OWNER)


def opens(secret: Secret | None, sealed: str) -> bool:
    """Return whether a text was encrypted with a secret."""
    try:
        Sealer(secret, os.urandom, _PURPOSE).open(sealed, _OWNER)
    except Unsealable:
        return False
    return True
