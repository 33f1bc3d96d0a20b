"""Encrypts short texts: the keys of servers that the database keeps, and sessions of the console.

AES-256-GCM under a key that HKDF (RFC 5869) derives from the salt key, or without one from the master key. Each text is
bound to its owner, so that a sealed key cannot be moved to another entry and sent to another server.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

from twisted_vllm.config.secret import Secret
from twisted_vllm.config.stored_models import StoredModel

#: the form of a sealed text
_VERSION = "v1."
_NONCE_BYTES = 12
_PURPOSE = b"twisted_vllm: keys of servers"


_OTHER_SECRET = (
    "was encrypted with another key (set VLLM_PASSTHROUGH_SALT_KEY to the salt key of that time, or send the api_key "
    "again with POST /model/update)"
)


class Unsealable(Exception):
    """A sealed text cannot be read: it was sealed with another key, or changed."""


class Sealer:
    """Seals short texts, and opens them again. Any thread may use it."""

    def __init__(self, secret: Secret | None, randbytes: Callable[[int], bytes], purpose: bytes = _PURPOSE) -> None:
        """Make it.

        Args:
            secret: the secret that the key is derived from; None if there is none: then nothing can be sealed.
            randbytes: returns that many bytes, fit for secrets.
            purpose: what is sealed; each purpose has a key of its own.
        """
        self._secret = secret
        self._purpose = purpose
        self._randbytes = randbytes
        self._cipher: Any = None

    def __repr__(self) -> str:
        return "<Sealer>"

    @property
    def can_seal(self) -> bool:
        """Whether there is a secret."""
        return self._secret is not None

    def seal(self, text: Secret, owner: str) -> str:
        """Return a text in encrypted form.

        Args:
            text: the text.
            owner: what it belongs to; it must be the same when it is opened.

        Raises:
            Unsealable: there is no secret.
        """
        nonce = self._randbytes(_NONCE_BYTES)
        sealed = self._aes().encrypt(nonce, text.reveal().encode("utf-8"), owner.encode("utf-8"))
        return _VERSION + urlsafe_b64encode(nonce + sealed).decode("ascii")

    def open(self, sealed: str, owner: str) -> Secret:
        """Return the text of a sealed one.

        Raises:
            Unsealable: it was sealed with another secret or for another owner, or it was changed.
        """
        # Imported here: it takes several MB, which a gateway without stored keys does not need.
        from cryptography.exceptions import InvalidTag

        try:
            if not sealed.startswith(_VERSION):
                raise Unsealable
            raw = urlsafe_b64decode(sealed.removeprefix(_VERSION).encode("ascii"))
            found = self._aes().decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], owner.encode("utf-8"))
            return Secret(found.decode("utf-8"))
        except (InvalidTag, ValueError):
            raise Unsealable from None

    def key_of(self, model: StoredModel) -> Secret | None:
        """Return the key of a stored model's server; None if it has none.

        Raises:
            ValueError: it was sealed with another secret; the message says what to do.
        """
        if model.api_key is None:
            return None
        try:
            return self.open(model.api_key, model.model_id)
        except Unsealable:
            raise ValueError(_OTHER_SECRET) from None

    def _aes(self) -> Any:
        if self._secret is None:
            raise Unsealable
        if self._cipher is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF

            derived = HKDF(SHA256(), 32, salt=None, info=self._purpose).derive(self._secret.reveal().encode("utf-8"))
            self._cipher = AESGCM(derived)
        return self._cipher
