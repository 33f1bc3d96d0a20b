"""How many tokens stored responses have: the prompt of a request that continues one begins with them.

The body of such a request only names the response, so its size says nothing about the prompt.
"""

from __future__ import annotations

from twisted_vllm.bounded_cache import BoundedCache

#: remembered responses, the newest ones, and the longest of their ids in characters; the gateway makes these ids
MAX_RESPONSES, MAX_ID = 10_000, 64


class ResponseSizes:
    """The tokens of stored responses by their ids, prompt and answer together. ``len()`` is the number of them."""

    def __init__(self, assumed: int) -> None:
        """Start with none.

        Args:
            assumed: the tokens of a response that is not known: another process made it, or it is too old.
        """
        self._tokens: BoundedCache[str, int] = BoundedCache(MAX_RESPONSES, MAX_ID)
        self.reconfigure(assumed)

    def reconfigure(self, assumed: int) -> None:
        """Assume another number of tokens from now on."""
        self._assumed = assumed

    def __len__(self) -> int:
        return len(self._tokens)

    def keep(self, response_id: str, tokens: int) -> None:
        """Remember a response's tokens; the oldest response makes room."""
        self._tokens.keep(response_id, tokens, len(response_id))

    def of(self, response_id: str) -> int:
        """Return a response's tokens."""
        found = self._tokens.get(response_id)
        return self._assumed if found is None else found
