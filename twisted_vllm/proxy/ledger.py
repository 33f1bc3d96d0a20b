"""Writes one ledger row for each request that was sent to a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from twisted_vllm.bodies.request_tags import (
    NOTHING_SAID,
    Said,
)
from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.usage.pricing import RoutePricing
from twisted_vllm.usage.records import RowDetails, Target, UsageRow, details_text, refer
from twisted_vllm.usage.repeated_rows import RepeatedRows

#: longer names of models and end users, and header values, are cut, in characters
TEXT_LIMIT = 255


class UsageSink(Protocol):
    """Where rows go: the spool.

    Attributes:
        healthy: whether rows that are appended now will be kept.
    """

    @property
    def healthy(self) -> bool: ...

    def append(self, row: UsageRow) -> None:
        """Append a row, to be written at the next `flush`."""

    def flush(self) -> None:
        """Write the rows that were appended."""


class RepeatableUsageSink(UsageSink, Protocol):
    """Where rows go that another process may have written already."""

    def append_doubtful(self, row: UsageRow) -> None:
        """Append such a row: if it is stored, it does not count again."""


class Coalescer(Protocol):
    """Reports the turns of the reactor: the write coalescer.

    Attributes:
        holding: whether a turn is in progress.
    """

    holding: bool


class LedgerRecorder(RequestObserver):
    """Appends a row when a request has finished."""

    def __init__(
        self,
        rows: UsageSink,
        text: ClientText,
        make_id: Callable[[float], bytes],
        *,
        usage_headers: Sequence[bytes] = (),
        request_tags: bool = True,
        coalescer: Coalescer | None = None,
    ) -> None:
        """Make a recorder. Call `write_repeated` once a minute and at the end.

        Args:
            rows: takes the rows.
            text: removes secrets from client-supplied text.
            make_id: makes a row id of 32 hex digits from the request's start in Unix seconds.
            usage_headers: lower-case names of the request headers to record.
            request_tags: whether to record the tags and the metadata that clients give their requests.
            coalescer: flushes the rows at the end of a reactor turn; outside a turn the recorder flushes them itself.
                With None it never flushes.
        """
        self._append = rows.append
        self._flush = rows.flush
        self._coalescer = coalescer
        self._text = text
        self._make_id = make_id
        self.reconfigure(usage_headers, request_tags=request_tags)
        self._repeated = RepeatedRows()

    def reconfigure(self, usage_headers: Sequence[bytes], *, request_tags: bool) -> None:
        """Record these from now on; the arguments are the constructor's."""
        self._usage_headers = tuple(usage_headers)
        self._request_tags = request_tags

    def finished(self, context: RequestContext) -> None:
        """Append the row of a request, if it was sent."""
        meter = context.meter
        authorization = context.authorization
        if meter is None or authorization is None or not context.sent:
            return
        pricing = meter.pricing
        usage = context.usage
        started = context.started
        first_byte = context.first_byte
        first = context.head.first
        row_id, request_id = self._text.request_id(context), ""
        if b"x-request-id" in first:
            # a client may reuse its id
            row_id, request_id = self._make_id(started).decode("ascii"), row_id
        if context.contents is not None and not authorization.uncounted:
            # what was kept of it is found by the row
            context.row_id = row_id
        said = context.all_said
        if said is not NOTHING_SAID:
            said = self._without_secrets(context, said) if self._request_tags else NOTHING_SAID
        background = context.background
        trace = context.trace
        # seldom anything
        has_details = context.queued is not None or context.fallback or (trace is not None and trace.sampled)
        append = self._append if background is None or not background.running else background.keep_row
        if authorization.uncounted:
            append = self._append_or_hold
        append(
            # positional, because keyword arguments cost twice as much
            UsageRow(
                row_id,
                int(started * 1e6),
                authorization.payer,
                pricing.target or self._target(pricing, context),
                request_id,
                context.end_user,
                self._recorded_headers(context) if self._usage_headers else None,
                context.status,
                context.outcome,
                context.error_code,
                meter.is_stream,
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.completion_tokens,
                usage.reasoning_tokens,
                usage.total_tokens,
                usage.audio_ms,
                usage.estimated,
                context.cost,
                None if first_byte is None else int((first_byte - started) * 1e6),
                round(context.duration * 1e6),
                context.bytes_in,
                context.bytes_out,
                1,
                context.failed_attempts if context.attempts else "",
                said.tags,
                said.metadata,
                meter.response_id or (meter.answer_id if authorization.stores else context.repeated_as),
                self._details(context) if has_details else "",
            )
        )
        if self._coalescer is not None and not self._coalescer.holding:
            self._flush()

    def write_repeated(self) -> None:
        """Append the rows that stand for several requests, and write them."""
        for row in self._repeated.end_round():
            self._append(row)
        self._flush()

    def _append_or_hold(self, row: UsageRow) -> None:
        found = self._repeated.add(row)
        if found is not None:
            self._append(found)

    def _without_secrets(self, context: RequestContext, said: Said) -> Said:
        tags = tuple(self._text.text(context, tag) for tag in said.tags)
        return Said(tags, self._text.whole(context, said.metadata))

    def _details(self, context: RequestContext) -> str:
        queued, trace = context.queued, context.trace
        return details_text(
            RowDetails(
                None if queued is None else round(queued * 1e6),
                self._text.text(context, context.fallback)[:TEXT_LIMIT] if context.fallback else "",
                trace.trace_id if trace is not None and trace.sampled else "",
            )
        )

    def _target(self, pricing: RoutePricing, context: RequestContext) -> msgspec.Raw:
        """Return the `Target` that all requests with one pricing share."""
        route = self._text.route(context)
        model = self._text.model(context)[:TEXT_LIMIT]
        server = "" if context.server is None else context.server.name
        method = context.head.method.decode("latin-1")
        target = pricing.target = refer(Target(model, server, route, method, pricing.prices.text))
        return target

    def _recorded_headers(self, context: RequestContext) -> dict[str, str] | None:
        recorded = {
            name.decode("ascii"): self._text.text(context, value.decode("latin-1"))[:TEXT_LIMIT]
            for name in self._usage_headers
            if (value := context.head.value(name)) is not None
        }
        return recorded or None
