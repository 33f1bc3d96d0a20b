"""The virtual keys in use, by their credential, so that a request with one needs no SHA-256 and no join.

Only a key that was authenticated is kept, so a stranger can neither fill the table nor put anything out of it. Whoever
looks a key up asks the index whether it is current: a blocked or deleted key stops at once, wherever it is kept.
"""

from __future__ import annotations

from itertools import islice

from twisted_vllm.auth.key_index import IndexedKey

#: keys that are kept, and the longest credential in bytes; the oldest makes room for a new one
MOST_KNOWN = 200_000
LONGEST_CREDENTIAL = 256

#: keys that one sweep looks at: it takes a few milliseconds
MOST_SWEPT = 10_000

#: words that are no credential in every place where one may stand: the name of a scheme alone
_SCHEME = b"bearer"


class KnownKeys:
    """Keys by their credential: one word of visible ASCII. A key that is not used between two sweeps is forgotten.

    Attributes:
        get: returns a key by its credential, current or not; None if it is not known.
    """

    __slots__ = ("_keys", "get")

    def __init__(self) -> None:
        self._keys: dict[bytes, IndexedKey] = {}
        self.get = self._keys.get

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<KnownKeys {len(self._keys)}>"

    def keep(self, credential: str, key: IndexedKey) -> None:
        """Keep a key that was authenticated by a credential."""
        if len(credential) > LONGEST_CREDENTIAL or not credential.isascii():
            return
        word = credential.encode("ascii")
        if word.lower() == _SCHEME:
            return
        keys = self._keys
        if word not in keys and len(keys) >= MOST_KNOWN:
            # many at once: a dictionary looks for its first entry among those that were removed
            for oldest in list(islice(keys, 1 + MOST_KNOWN // 100)):
                del keys[oldest]
        keys[word] = key

    def sweep(self) -> None:
        """Forget keys that were not used since an earlier sweep looked at them; call it once a minute."""
        keys = self._keys
        # in two passes: a dictionary must not change under its iterator
        for credential, key in list(islice(keys.items(), MOST_SWEPT)):
            del keys[credential]
            if key.used:
                key.used = False
                keys[credential] = key
