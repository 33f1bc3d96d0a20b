"""Weighted rendezvous hashing: each key has its own order of the servers, which others do not change.

Each server draws a score from the hash of the key and its name, and the highest wins: a server wins keys in proportion
to its weight, and if it leaves, only its own keys go elsewhere (Schindelhauer and Schomaker, "Weighted Distributed Hash
Tables", 2005: the logarithmic method). All processes agree, as the hash has no seed.
"""

from __future__ import annotations

from hashlib import blake2b
from math import log

_MASK = (1 << 64) - 1


def key_hash(key: bytes) -> int:
    """Return the 64-bit hash of a session's key or of a server's name."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def score(key: int, server: int, weight: float) -> float:
    """Return a server's score for a key; the highest wins.

    Args:
        key: the hash of the key.
        server: the hash of the server's name.
        weight: its weight, over 0.
    """
    # the finalizer of MurmurHash3 (fmix64) mixes the bits of both
    mixed = key ^ server
    mixed = (mixed ^ mixed >> 33) * 0xFF51AFD7ED558CCD & _MASK
    mixed = (mixed ^ mixed >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    mixed ^= mixed >> 33
    # in (0, 1]: a float has 53 bits, and the largest rounds to 1.0
    share = (mixed + 1) / 18446744073709551617.0
    return weight / -log(share) if share < 1.0 else float("inf")
