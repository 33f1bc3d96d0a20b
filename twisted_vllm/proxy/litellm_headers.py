"""LiteLLM's headers of a response: which call it was, of which model, and what its key may use.

They name no server: a tenant must not learn internal addresses.
"""

from __future__ import annotations

import re

from twisted_vllm.auth.records import Principal
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.context import RequestContext
from twisted_vllm.money import float_dollars
from twisted_vllm.ratelimit.allowance import KEY, Allowance
from twisted_vllm.ratelimit.reservation import Reservation

#: combinations of a key's limits, a model and an entry whose lines are remembered, and the longest name in a header
MAX_KNOWN, MAX_NAME = 1_000, 256

# RFC 9110, section 5.6.2
_NO_TOKEN = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")


class LitellmHeaders:
    """Writes the headers of responses as serialized lines."""

    def __init__(self) -> None:
        """Remember none yet."""
        #: by the identity of the limits, which many keys share
        self._known: BoundedCache[tuple[int, str, str], tuple[Allowance | None, bytes, bytes]]
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
        allowance = _own_limits(principal)
        about = (id(allowance), model, context.model_id)
        known = self._known.get(about)
        if known is None or known[0] is not allowance:
            known = (allowance, _lines_of(allowance, model, context.model_id), _counted_model(allowance, model))
            self._known.keep(about, known, len(model) + len(context.model_id))
        added = b"x-litellm-call-id: %b\r\n%b" % (context.request_id, known[1])
        reservation = context.reservation
        if reservation is not None:
            spend = reservation.key_spend
            if spend is not None:
                added += b"x-litellm-key-spend: %b\r\n" % str(float_dollars(spend)).encode("ascii")
            if known[2]:
                added += _left(known[2], reservation)
        if context.attempts:
            added += b"x-litellm-attempted-retries: %d\r\n" % len(context.attempts)
        return added


def _own_limits(principal: Principal) -> Allowance | None:
    """Return the limits of a caller's key; None if it has none of its own."""
    for each in principal.limited:
        if each.kind == KEY:
            return each.allowance
    return None


def _counted_model(allowance: Allowance | None, model: str) -> bytes:
    """Return how headers write a model for which a key has limits of its own; empty for another."""
    if allowance is None or not (model.isascii() and model.isprintable() and len(model) <= MAX_NAME):
        return b""
    if model in allowance.model_rpm or model in allowance.model_tpm:
        # as LiteLLM has it; a name may hold what no header's name may
        return _NO_TOKEN.sub("-", model).encode("ascii")
    return b""


def _left(model: bytes, reservation: Reservation) -> bytes:
    """Return the lines for what is left of the tightest limits, for a key with limits of the model."""
    lines = b""
    for what, state in ((b"requests", reservation.requests_left), (b"tokens", reservation.tokens_left)):
        if state is not None:
            lines += b"x-litellm-key-remaining-%b-%b: %d\r\n" % (what, model, max(state[1], 0))
    return lines


def _lines_of(allowance: Allowance | None, model: str, model_id: str) -> bytes:
    """Return the lines that all requests for a model share, of callers with these limits."""
    found: list[tuple[str, object]] = []
    for name, value in (("x-litellm-model-id", model_id), ("x-litellm-model-group", model)):
        # a client may send any text as the name
        if value and value.isascii() and value.isprintable() and len(value) <= MAX_NAME:
            found.append((name, value))
    if allowance is not None:
        budget = allowance.max_budget
        found += [
            ("x-litellm-key-rpm-limit", allowance.rpm),
            ("x-litellm-key-tpm-limit", allowance.tpm),
            ("x-litellm-key-max-budget", None if budget is None else float_dollars(budget)),
        ]
    return b"".join(f"{name}: {value}\r\n".encode("ascii") for name, value in found if value is not None)
