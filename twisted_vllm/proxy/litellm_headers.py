"""LiteLLM's headers of a response: which call it was, of which model, and what its key may use.

They name no server: a tenant must not learn internal addresses.
"""

from __future__ import annotations

from twisted_vllm.auth.records import Principal
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.context import RequestContext
from twisted_vllm.money import to_dollars
from twisted_vllm.ratelimit.allowance import KEY

#: pairs of a key and a model whose lines are remembered, and the longest name of a model in a header
MAX_PAIRS, MAX_NAME = 1_000, 256


class LitellmHeaders:
    """Writes the headers of responses as serialized lines."""

    def __init__(self) -> None:
        """Remember none yet."""
        self._known: BoundedCache[tuple[str, str], tuple[Principal, bytes]] = BoundedCache(MAX_PAIRS, MAX_NAME)

    def __len__(self) -> int:
        """Return the number of remembered pairs."""
        return len(self._known)

    def lines(self, context: RequestContext) -> bytes:
        """Return the lines for a request's response."""
        # of a fallback, `for_client` names the model
        principal, model = context.principal, "" if context.fallback else context.model
        if principal is None:
            return b"x-litellm-call-id: %b\r\n" % context.request_id
        known = self._known.get((principal.key_id, model))
        if known is None or known[0] is not principal:
            known = (principal, _lines_of(principal, model))
            self._known.keep((principal.key_id, model), known, len(model))
        added = b"x-litellm-call-id: %b\r\n%b" % (context.request_id, known[1])
        if context.attempts:
            added += b"x-litellm-attempted-retries: %d\r\n" % len(context.attempts)
        return added


def _lines_of(principal: Principal, model: str) -> bytes:
    """Return the lines that all requests of a caller for a model share."""
    found: list[tuple[str, object]] = []
    # a client may send any text as the name
    if model and model.isascii() and model.isprintable() and len(model) <= MAX_NAME:
        found.append(("x-litellm-model-group", model))
    for each in principal.limited:
        if each.kind == KEY:
            allowance = each.allowance
            budget = allowance.max_budget
            found += [
                ("x-litellm-key-rpm-limit", allowance.rpm),
                ("x-litellm-key-tpm-limit", allowance.tpm),
                ("x-litellm-key-max-budget", None if budget is None else float(to_dollars(budget))),
            ]
    return b"".join(f"{name}: {value}\r\n".encode("ascii") for name, value in found if value is not None)
