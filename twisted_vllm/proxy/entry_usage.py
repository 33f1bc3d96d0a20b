"""Tells the entry that served a request what it used, for the entry's ``tpm``."""

from __future__ import annotations

from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import RequestObserver


class EntryUsage(RequestObserver):
    """Settles a request's share of the limits of its entry. It comes after the accounting, which finds the usage."""

    def finished(self, context: RequestContext) -> None:
        """Settle a request, if its entry has limits."""
        share = context.entry_share
        if share is None:
            return
        context.entry_share = None
        if context.background is not None and context.background.running:
            # the server goes on: the estimate stands
            return
        usage = context.usage
        share.used(usage.prompt_tokens + usage.completion_tokens, sent=context.sent_at is not None)
