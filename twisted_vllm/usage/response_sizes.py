"""How many tokens stored responses have: the prompt of a request that continues one begins with them.

The body of such a request only names the response, so its size says nothing about the prompt.
"""

from __future__ import annotations

#: remembered responses, the newest ones
MAX_RESPONSES = 10_000


class ResponseSizes:
    """The tokens of stored responses by their ids, prompt and answer together. ``len()`` is the number of them."""

    def __init__(self, assumed: int) -> None:
        """Start with none.

        Args:
            assumed: the tokens of a response that is not known: another process made it, or it is too old.
        """
        self._assumed = assumed
        self._tokens: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def keep(self, response_id: str, tokens: int) -> None:
        """Remember a response's tokens; the oldest response makes room."""
        if len(self._tokens) >= MAX_RESPONSES:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[response_id] = tokens

    def of(self, response_id: str) -> int:
        """Return a response's tokens."""
        return self._tokens.get(response_id, self._assumed)
