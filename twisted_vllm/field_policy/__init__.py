"""Decides which fields of a request's body a key may send, and how large they may be. No reactor and no I/O."""
