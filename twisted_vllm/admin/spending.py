"""Sets what a key, a user or a customer has spent in its budget's current period."""

from __future__ import annotations

from twisted_vllm.admin.budget_references import Holder, effective_limits
from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.limits import current_spend, dollars
from twisted_vllm.money import from_dollars
from twisted_vllm.ratelimit.allowance import Allowance
from twisted_vllm.ratelimit.periods import period_of
from twisted_vllm.storage.transaction import Transaction


def spend_now(transaction: Transaction, audit: AuditContext, kind: str, identity: str, allowance: Allowance) -> int:
    """Return the spend of somebody in its budget's current period, in picodollars.

    Args:
        transaction: the transaction.
        audit: when the request came.
        kind: ``key``, ``user`` and the other kinds of `Limited`.
        identity: the key's permanent id, or the id of the others.
        allowance: its limits.
    """
    return current_spend(allowance, transaction.spend.of(kind, [identity])[identity], audit.now)


def set_spend(
    transaction: Transaction,
    audit: AuditContext,
    kind: str,
    identity: str,
    allowance: Allowance,
    spend: int,
    name: str = "",
) -> None:
    """Set the spend of somebody in its budget's current period. Its total spend stays.

    Args:
        transaction: the transaction.
        audit: who asks.
        kind: as in `spend_now`.
        identity: likewise.
        allowance: its limits.
        spend: in picodollars.
        name: what the audit log calls it; the identity by default.
    """
    before = spend_now(transaction, audit, kind, identity, allowance)
    if before == spend:
        return
    start, _ = period_of(allowance.budget_duration, audit.now.timestamp())
    transaction.spend.set(kind, identity, spend, start)
    audit.record(transaction, kind, name or identity, {"spend": dollars(before)}, {"spend": dollars(spend)})


def set_given_spend(
    transaction: Transaction,
    audit: AuditContext,
    kind: str,
    identity: str,
    holder: Holder,
    spend: float | None,
    name: str = "",
) -> None:
    """Set the spend that a request gives, as `set_spend`.

    Args:
        transaction: the transaction.
        audit: who asks.
        kind: as in `spend_now`.
        identity: likewise.
        holder: the record, whose limits and budget say when its current period began.
        spend: in US dollars; None leaves it.
        name: as in `set_spend`.
    """
    if spend is not None:
        limits = effective_limits(transaction, holder)
        set_spend(transaction, audit, kind, identity, limits, from_dollars(spend), name)
