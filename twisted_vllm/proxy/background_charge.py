"""What a background response is charged, without I/O."""

from __future__ import annotations

import msgspec

from twisted_vllm.usage.pricing import Prices, cost_of
from twisted_vllm.usage.records import NOTHING_USED, Usage, UsageRow

# in the order of `Prices`
_PRICES = ("prompt", "cached", "completion", "audio_ms", "request")

#: no server generates one response faster, in tokens a second
FASTEST = 1_000
#: a response without a limit counts at this speed, in tokens a second, up to `LONGEST` times the assumed tokens
USUAL = 100
LONGEST = 32

#: the end of a response by its ``status`` (vLLM 0.32: ``ResponseStatus``), as the outcome of its row
OUTCOMES = {
    "completed": "completed",
    "incomplete": "completed",
    "cancelled": "client_disconnected",
    "failed": "upstream_error",
}


class BackgroundWork(msgspec.Struct, kw_only=True):
    """What must be known of a background response to charge it, also after a restart.

    Attributes:
        id: its id.
        server: the name of its server.
        started: when its request began, in Unix seconds.
        model: the model that its request names.
        limited: the kind and the id of each whose limits apply.
        key_id: the key that made it.
        tokens: the reserved tokens.
        cost: the reserved cost, in picodollars.
        prompt_tokens: the prompt's tokens, estimated.
        max_tokens: the most tokens that the client lets it generate; None without a limit.
        seen_tokens: the generated tokens that passed before the request ended, estimated.
        confirmed: whether the server is known to have it.
        prices: the prices, as integers in text: they exceed 64 bits.
        row: its row in the ledger, incomplete; None without a ledger.
        group: the name of its model group; empty without one.
        payer: who pays for it, as in `UsageRow`, if there is no row.
    """

    id: str
    server: str
    started: float
    model: str
    limited: tuple[tuple[str, str], ...]
    key_id: str
    tokens: int
    cost: int
    prompt_tokens: int
    max_tokens: int | None
    seen_tokens: int
    confirmed: bool
    prices: dict[str, str]
    row: UsageRow | None = None
    group: str = ""
    payer: msgspec.Raw | None = None


class Charge(msgspec.Struct, frozen=True):
    """The end of a background response.

    Attributes:
        usage: what it used.
        cost: in picodollars.
        outcome: as in a ledger row.
    """

    usage: Usage
    cost: int
    outcome: str


def pack_prices(prices: Prices) -> dict[str, str]:
    """Return the numbers of prices as text."""
    return {name: str(getattr(prices, name)) for name in _PRICES}


def charge_of(work: BackgroundWork, status: str, reported: Usage | None, now: float, assumed: int) -> Charge:
    """Return the charge of a response that has ended.

    Args:
        work: the response.
        status: its status; empty if it is lost: its server has it no more, or nobody knows.
        reported: the usage that the server reported; None if it reported none.
        now: Unix seconds.
        assumed: the tokens of a response without a limit (``passthrough.limits.assumed_output_tokens``).
    """
    if reported is not None:
        usage = reported
    elif status == "failed":
        # as an error: it costs nothing
        return Charge(NOTHING_USED, 0, OUTCOMES[status])
    elif not status and not work.confirmed:
        # the server never had it: as a request that was cut before its answer
        outcome = "client_disconnected" if work.row is None else work.row.outcome
        if outcome not in ("client_disconnected", "revoked", "cut"):
            return Charge(NOTHING_USED, 0, outcome)
        usage = _estimated(work.prompt_tokens, 0)
        return Charge(usage, cost_of(usage, _prices_of(work)), outcome)
    else:
        usage = _estimated(work.prompt_tokens, _assumed_tokens(work, now - work.started, assumed))
    return Charge(usage, cost_of(usage, _prices_of(work)), OUTCOMES.get(status, "upstream_failed"))


def _prices_of(work: BackgroundWork) -> Prices:
    prompt, cached, completion, audio_ms, request = (int(work.prices.get(name, "0")) for name in _PRICES)
    return Prices("", prompt, cached, completion, audio_ms, request)


def _assumed_tokens(work: BackgroundWork, seconds: float, assumed: int) -> int:
    """Return the generated tokens to charge if nobody reports them: what was reserved, or what the time allows."""
    most = work.max_tokens
    if most is None:
        most = max(assumed, min(int(seconds * USUAL), assumed * LONGEST))
    return max(min(most, int(seconds * FASTEST) + 1), work.seen_tokens)


def _estimated(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion, estimated=True)
