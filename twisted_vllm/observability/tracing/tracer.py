"""The tracer on the data path: ids, headers for the server, and which requests get spans.

Nothing here makes spans: that is done from the finished request, off the reactor (`spans`).
"""

from __future__ import annotations

from collections.abc import Callable

from twisted_vllm.config.tracing import NOBODY
from twisted_vllm.context import RequestContext, RequestTrace
from twisted_vllm.http.headers import HeaderList
from twisted_vllm.observability.request_event import is_fault
from twisted_vllm.observability.tracing.propagation import (
    TRACEPARENT,
    TRACESTATE,
    read,
    write_parent,
)
from twisted_vllm.observability.tracing.sampling import ErrorAllowance, Sampler, is_probe

#: hex digits of the id of a span; the id of a trace has twice as many
_DIGITS = 16
#: ids per read of the kernel's random source
_BATCH = 96
_NOTHING = "0" * _DIGITS


class Trace:
    """The place of a request in a trace; see `context.RequestTrace`.

    Attributes:
        trace_id: the id of the trace, 32 hex digits.
        span_id: the id of the request's own span, 16 hex digits.
        attempt_id: the id of the span of the current attempt, which its server sees; empty before.
        sampled: whether the trace is recorded, as the server is told.
        parent_id: the id of the caller's span; empty if the gateway began the trace.
        state: the caller's ``tracestate``, or empty.
    """

    __slots__ = ("attempt_id", "parent_id", "sampled", "span_id", "state", "trace_id")

    def __init__(self, trace_id: str, span_id: str, parent_id: str, state: bytes, *, sampled: bool) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.attempt_id = ""
        self.sampled = sampled
        self.parent_id = parent_id
        self.state = state


class SpanIds:
    """Makes random ids of spans: 16 hex digits, not all zero."""

    __slots__ = ("_made", "_randbytes")

    def __init__(self, randbytes: Callable[[int], bytes]) -> None:
        """Start; `randbytes` returns the given number of random bytes."""
        self._randbytes = randbytes
        self._made: list[str] = []

    def make(self) -> str:
        """Return the next id."""
        while not self._made:
            digits = self._randbytes(_BATCH * _DIGITS // 2).hex()
            made = [digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS)]
            self._made = [each for each in made if each != _NOTHING]
        return self._made.pop()


class Tracer:
    """Assigns trace and span ids to requests; see `context.RequestTracer`.

    Attributes:
        propagates: whether servers are told the trace.
    """

    def __init__(
        self,
        sampler: Sampler,
        randbytes: Callable[[int], bytes],
        *,
        propagates: bool,
        errors: ErrorAllowance | None,
        refused: str,
        gateway_routes: bool,
        is_own: Callable[[bytes], bool],
    ) -> None:
        """Set up.

        Args:
            sampler: decides which traces are recorded.
            randbytes: returns the given number of random bytes.
            propagates: whether servers are told the trace.
            errors: how many failed requests are recorded that were not sampled; None for none.
            refused: whose requests are recorded that reached no server: ``all``, ``keys`` or ``nobody``.
            gateway_routes: whether requests to the gateway's own routes are recorded.
            is_own: returns whether a path is one of the gateway's own routes.
        """
        self.propagates = propagates
        self._sampler = sampler
        self._ids = SpanIds(randbytes)
        self._errors = errors
        self._refused = refused
        self._gateway_routes = gateway_routes
        self._is_own = is_own

    def begin(self, context: RequestContext) -> Trace:
        """Continue the caller's trace or begin one, and set ``context.trace``."""
        sampler, make = self._sampler, self._ids.make
        span_id = make()
        head, principal = context.head, context.principal
        if TRACEPARENT in head.first and sampler.continues(principal):
            incoming = read(head.first, head.names, head.headers)
            if incoming is not None:
                # the caller chose the trace's id, so the ratio goes by ours
                sampled = incoming.sampled if sampler.obeys(principal) else sampler.takes(span_id)
                trace = Trace(incoming.trace_id, span_id, incoming.parent_id, incoming.state, sampled=sampled)
                context.trace = trace
                return trace
        trace_id = make() + make()
        trace = Trace(trace_id, span_id, "", b"", sampled=sampler.takes(trace_id))
        context.trace = trace
        return trace

    def attempt(self, context: RequestContext) -> RequestTrace | None:
        """Begin the span of an attempt; return the trace if its server is told, else None."""
        trace = context.trace
        if trace is None:
            trace = self.begin(context)
        trace.attempt_id = self._ids.make()
        return trace if self.propagates else None

    def act(self, context: RequestContext) -> RequestTrace | None:
        """As `attempt`, for a request to several servers at once, none of which has a span of its own."""
        trace = context.trace
        if trace is None:
            trace = self.begin(context)
        return trace if self.propagates else None

    @staticmethod
    def headers(trace: RequestTrace) -> HeaderList:
        """Return the headers that tell a server the trace, and its own place in it."""
        parent = write_parent(trace.trace_id, trace.attempt_id or trace.span_id, sampled=trace.sampled)
        return [(TRACEPARENT, parent), (TRACESTATE, trace.state)] if trace.state else [(TRACEPARENT, parent)]

    def ended(self, context: RequestContext) -> None:
        """Give a finished request its place in a trace, if it has none and may be recorded."""
        if context.trace is None and self._is_of_interest(context):
            self.begin(context)

    def records(self, context: RequestContext) -> bool:
        """Decide whether a finished request gets spans: it was sampled, or it failed.

        It counts failures, so it is called once for each request.
        """
        trace = context.trace
        if trace is None or not (context.sent or self._is_of_interest(context)):
            return False
        if trace.sampled:
            return True
        if self._errors is None or not is_fault(context.status, context.outcome, context.error_code):
            return False
        return self._errors.take(context.ended)

    def _is_of_interest(self, context: RequestContext) -> bool:
        """Return whether a request may be recorded that reached no server."""
        if self._refused != "all" and (context.principal is None or context.principal.kind == "preflight"):
            return False
        target = context.head.target
        if not target.startswith(b"/"):
            # nothing can be said of a head that was not read
            return False
        if self._is_own(target.partition(b"?")[0]):
            return self._gateway_routes and not is_probe(target)
        return self._refused != NOBODY
