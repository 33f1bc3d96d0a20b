"""LiteLLM's headers of a response: which call it was, of which model, and what its key may use.

They name no server: a tenant must not learn internal addresses.
"""

from __future__ import annotations

from twisted_vllm.auth.records import Principal
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.context import RequestContext
from twisted_vllm.money import to_dollars
from twisted_vllm.ratelimit.allowance import KEY

#: combinations of a key, a model and an entry whose lines are remembered, and the longest name in a header
MAX_KNOWN, MAX_NAME = 1_000, 256


class LitellmHeaders:
    """Writes the headers of responses as serialized lines."""

    def __init__(self) -> None:
        """Remember none yet."""
        self._known: BoundedCache[tuple[str, str, str], tuple[Principal, bytes]]
        self._known = BoundedCache(MAX_KNOWN, 2 * MAX_NAME)

    def __len__(self) -> int:
        """Return the number of remembered combinations."""
        return len(self._known)

    def lines(self, context: RequestContext) -> bytes:
        """Return the lines for a request's response."""
        # of a fallback, `for_client` names the model
        principal, model = context.principal, "" if context.fallback else context.model
        if principal is None:
            return b"x-litellm-call-id: %b\r\n" % context.request_id
        about = (principal.key_id, model, context.model_id)
        known = self._known.get(about)
        if known is None or known[0] is not principal:
            known = (principal, _lines_of(principal, model, context.model_id))
            self._known.keep(about, known, len(model) + len(context.model_id))
        added = b"x-litellm-call-id: %b\r\n%b" % (context.request_id, known[1])
        if context.attempts:
            added += b"x-litellm-attempted-retries: %d\r\n" % len(context.attempts)
        return added


def _lines_of(principal: Principal, model: str, model_id: str) -> bytes:
    """Return the lines that all requests of a caller for a model share."""
    found: list[tuple[str, object]] = []
    for name, value in (("x-litellm-model-id", model_id), ("x-litellm-model-group", model)):
        # a client may send any text as the name
        if value and value.isascii() and value.isprintable() and len(value) <= MAX_NAME:
            found.append((name, value))
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
