"""Writes one row of the ledger for each request that was sent to a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from twisted_vllm.context import Authorization, RequestContext
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.request_record import ClientText
from twisted_vllm.usage.pricing import RoutePricing
from twisted_vllm.usage.records import Target, UsageRow, refer

#: characters of a model's name, and of a header's value, that are kept
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


class Turns(Protocol):
    """Knows the turns of the reactor.

    Attributes:
        holding: whether a turn is running.
    """

    holding: bool


class LedgerRecorder(RequestObserver):
    """Appends the rows."""

    def __init__(
        self,
        rows: UsageSink,
        text: ClientText,
        make_id: Callable[[float], bytes],
        *,
        usage_headers: Sequence[bytes] = (),
        turns: Turns | None = None,
    ) -> None:
        """Make a recorder.

        Args:
            rows: where the rows go.
            text: takes secrets out of what clients wrote.
            make_id: makes the id of a row of a request that began at some Unix second, 32 hex digits.
            usage_headers: lower-case names of the request headers that rows keep.
            turns: flushes the rows at the end of a turn of the reactor; outside of one they are flushed here. None
                leaves that to others.
        """
        self._append = rows.append
        self._flush = rows.flush
        self._turns = turns
        self._text = text
        self._make_id = make_id
        self._usage_headers = tuple(usage_headers)

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
            # an id that the client chose may come again
            row_id, request_id = self._make_id(started).decode("ascii"), row_id
        self._append(
            # in the order of its fields: by their names it costs twice as much
            UsageRow(
                row_id,
                int(started * 1e6),
                authorization.payer,
                pricing.target or self._target(pricing, authorization, context),
                request_id,
                context.end_user,
                self._kept(first) if self._usage_headers else None,
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
            )
        )
        if self._turns is not None and not self._turns.holding:
            self._flush()

    def _target(self, pricing: RoutePricing, authorization: Authorization, context: RequestContext) -> msgspec.Raw:
        """Return what all requests with one pricing ask of whom, as the ledger keeps it."""
        clean = self._text.clean
        route = authorization.route.name or clean(authorization.path.decode("latin-1"))
        model = clean(context.model)[:TEXT_LIMIT]
        server = "" if context.server is None else context.server.name
        method = context.head.method.decode("latin-1")
        found = pricing.target = refer(Target(model, server, route, method, pricing.prices.text))
        return found

    def _kept(self, first: Mapping[bytes, bytes]) -> dict[str, str] | None:
        found = {
            name.decode("ascii"): first[name].decode("latin-1")[:TEXT_LIMIT]
            for name in self._usage_headers
            if name in first
        }
        return found or None
