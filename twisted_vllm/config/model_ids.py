"""The ids of entries of the model list that name none (``model_info.id``).

Everybody who may use a model sees the id of its entry. It follows from the server's address, so that it is the same at
each start and in each process; it depends on a secret as well, or callers could check guesses of internal addresses.
"""

from __future__ import annotations

import hmac
from functools import lru_cache
from hashlib import scrypt, sha256

from twisted_vllm.config.secret import Secret, hash_of

_PURPOSE = b"twisted_vllm: ids of models"
# Slow, as an id is also a way to check guesses of a master key that is a word: 16 MiB and 50 ms for each.
_COST = {"n": 2**14, "r": 8, "p": 1}


def lasting_secret(salt_key: Secret | None, master_key: Secret | None) -> Secret | None:
    """Return the secret of what must outlast a start: the salt key, else the master key's hash, or None.

    The hash, so that a master key and its hash in the file mean the same here as well.
    """
    if salt_key is not None or master_key is None:
        return salt_key
    return Secret(hash_of(master_key) or sha256(master_key.reveal().encode("utf-8")).hexdigest())


class ModelIds:
    """Makes ids.

    Args:
        secret: what they depend on; None for nothing.
    """

    def __init__(self, secret: Secret | None) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "<ModelIds>"

    def of(self, *what: str) -> str:
        """Return the id of what is told by some texts."""
        message = "\n".join(what).encode("utf-8", "replace")
        if self._secret is None:
            return sha256(message).hexdigest()
        return hmac.digest(_derived(self._secret.reveal()), message, "sha256").hex()


@lru_cache(maxsize=4)
def _derived(secret: str) -> bytes:
    return scrypt(secret.encode("utf-8"), salt=_PURPOSE, dklen=32, **_COST)
