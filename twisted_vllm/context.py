"""The context of a request: one typed value from its first byte to its log line."""

from __future__ import annotations

import re
from typing import Protocol
from urllib.parse import unquote, unquote_plus

import msgspec

from twisted_vllm.api_routes import Route
from twisted_vllm.auth.credentials import SHORTEST_SECRET, carried, strike_out
from twisted_vllm.auth.records import Principal
from twisted_vllm.bodies.request_tags import (
    METADATA_HEADER,
    NOTHING_SAID,
    TAGS_HEADER,
    Said,
    said_in_headers,
    together,
)
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import TURNED_AWAY, Draining, UpstreamUnreachable
from twisted_vllm.field_policy.policy import FieldPolicy
from twisted_vllm.http.headers import NO_REQUEST_HEAD, HeaderList, RequestHead, ResponseHead
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.usage.meter import UsageMeter
from twisted_vllm.usage.readers.counts import response_id_in
from twisted_vllm.usage.records import NOTHING_USED, Usage, UsageRow

# also cut short, and between quotation marks
_CREDENTIAL = re.compile(r"sk-[\w-]{13,}|\beyJ[\w-]{20,}(?:\.[\w-]*)*")


class Peer:
    """The other end of a client connection.

    Attributes:
        host: its address; empty on a UNIX socket.
        secure: whether the connection is TLS.
        written: its address as ``X-Forwarded-For`` has it; ``unknown`` on a UNIX socket (RFC 7239 §6.2).
    """

    __slots__ = ("host", "secure", "written")

    def __init__(self, host: str, secure: bool) -> None:
        self.host = host
        self.secure = secure
        self.written = host.encode("latin-1") or b"unknown"


class Authorization(msgspec.Struct, frozen=True, gc=False):
    """The authorization of a request's head.

    Attributes:
        principal: the caller.
        payer: the caller in the ledger's form. What follows depends on what the caller may do, and not on who it is.
        route: the requested route.
        path: the raw path for the server, without the query.
        forwarded: the raw path and query for the server, below its base path.
        needs_body: whether the body must be buffered before a server is chosen.
        wants_body: whether to buffer the body if possible, because the ledger reads it.
        stores: whether the request makes a response that the server may store.
        response_id: the id of the stored response that the path names; None if it names none.
        response_server: the server that has that response; None if its id does not tell.
        fields: which fields the body may have; None if any.
        reads: whether the body is read for its model.
        restricted: whether the caller may use certain models only.
        uncounted: whether no limit of requests counts it: it only reads, or cancels a stored response.
        path_model: the model that the path names, which decides whatever the body says; empty if it names none.
        located: the id of the stored response that was asked of all servers, and the server that has it or None; None
            if none was asked for.
        model_id: the name of the model that the request asks about; empty if it asks for the list of models, None if
            for neither.
    """

    principal: Principal
    payer: msgspec.Raw
    route: Route
    path: bytes
    forwarded: bytes
    needs_body: bool
    wants_body: bool
    reads: bool = False
    restricted: bool = False
    stores: bool = False
    response_id: str | None = None
    response_server: Server | None = None
    fields: FieldPolicy | None = None
    uncounted: bool = False
    path_model: str = ""
    located: tuple[str, Server | None] | None = None
    model_id: str | None = None


# parameters and segments that are looked at: more are nobody's mistake
_MOST_PARTS = 8
# characters of a key, each percent-encoded twice
_LONGEST_PART = 512 * 5
# the names of parameters that hold keys
_NAMES_A_KEY = re.compile(r"key|token|secret|auth|password", re.IGNORECASE)
# ``regenerate`` in ``/key/KEY/regenerate``
_ROUTE_WORD = re.compile(r"[a-z_]*")


class BackgroundResponse:
    """A response that its server generates after it has answered the request.

    Attributes:
        id: its id; empty until the server chose it.
        prompt_tokens: the prompt's tokens, estimated.
        max_tokens: the most tokens that the client lets it generate; None without a limit.
        seen_tokens: the generated tokens that passed before the request ended, estimated.
        running: whether it may be generated after the request has ended: then it is charged later.
        row: the request's ledger row, which is completed and written when it is charged; None without a ledger.
    """

    __slots__ = ("id", "max_tokens", "prompt_tokens", "row", "running", "seen_tokens")

    def __init__(self, id: str, prompt_tokens: int, max_tokens: int | None) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.seen_tokens = 0
        self.running = False
        self.row: UsageRow | None = None

    def left_running(self, context: RequestContext) -> bool:
        """Decide, when its request is over, whether the server may go on generating it; sets `running`."""
        meter = context.meter
        if meter is None or not context.sent or context.error_code == UpstreamUnreachable.code:
            return False
        if meter.status:
            if not 200 <= meter.status < 300 or meter.failed:
                return False
            try:
                usage = meter.usage(context.outcome)
            except Exception:
                # the server's word at its end counts, not this answer
                usage = NOTHING_USED
            if usage.total_tokens and not usage.estimated:
                # a stream that was read to its end
                return False
            self.seen_tokens = usage.completion_tokens
        if not self.id:
            self.id = response_id_in(meter.whole)
        self.running = bool(self.id)
        return self.running

    def keep_row(self, row: UsageRow) -> None:
        """Keep the request's row until the response is charged."""
        self.row = row


class EntryShare(Protocol):
    """What a request takes of the ``rpm`` and ``tpm`` of the entry that serves it."""

    def used(self, tokens: int, *, sent: bool) -> None:
        """Replace the estimate by the tokens that it used; if nothing was sent, it does not count. Idempotent."""


class FailedAttempt(msgspec.Struct, frozen=True, gc=False):
    """An attempt that another followed.

    Attributes:
        server: the name of its server.
        reason: why it failed: the code of an error, or ``status_503``.
        began: when it was passed to the HTTP client, in Unix seconds.
        ended: when it failed, likewise.
        status: the status of the server's answer; 0 without one.
        span_id: the id of its span, 16 hex digits; empty if it is not traced.
    """

    server: str
    reason: str
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    span_id: str = ""


class RequestTrace(Protocol):
    """The place of a request in a trace (W3C Trace Context).

    Attributes:
        trace_id: the id of the trace, 32 hex digits.
        span_id: the id of the request's own span, 16 hex digits.
        attempt_id: the id of the span of the current attempt, which its server sees; empty before.
        sampled: whether the trace is recorded.
        parent_id: the id of the caller's span; empty if the gateway began the trace.
        state: the caller's ``tracestate``, or empty.
    """

    trace_id: str
    span_id: str
    attempt_id: str
    sampled: bool
    parent_id: str
    state: bytes


class RequestTracer(Protocol):
    """Assigns trace and span ids to requests, and writes the headers of W3C Trace Context."""

    def attempt(self, context: RequestContext) -> RequestTrace | None:
        """Begin the span of an attempt; return the trace if it is propagated to its server, else None."""

    def act(self, context: RequestContext) -> RequestTrace | None:
        """As `attempt`, for a request to several servers at once, none of which has a span of its own."""

    def headers(self, trace: RequestTrace) -> HeaderList:
        """Return the headers that tell a server the trace, and its own place in it."""


class Contents(Protocol):
    """Gathers prompt and answer of a request."""

    def start(self, head: ResponseHead) -> None:
        """Take the head of the response that goes to the client."""

    def feed(self, data: bytes) -> None:
        """Take the next piece of the response's body, as its server sent it."""


class RequestContext:
    """The context of one request.

    Times are in Unix seconds, from the reactor's clock.

    Attributes:
        peer: the client's address.
        started: when its first byte arrived.
        head: its head; `NO_REQUEST_HEAD` until it was read.
        request_id: the ``X-Request-Id`` that client and server see; empty before it is dispatched.
        principal: the caller; None if nobody was authenticated.
        authorization: its authorization; None outside ``/vllm``, or if it was refused.
        model: the model that it names, with the key's alias resolved; empty if it names none or was not read.
        server: the chosen server; None before.
        model_id: the id of the entry of the model list that serves it; empty if none does.
        group: the name of its model group, which is the configuration's and not the client's: it may be a pattern;
            empty if only the default server serves it, or nothing.
        end_user: the end user that the caller names.
        said: what its body says for the ledger.
        meter: measures its usage; None if usage is not measured.
        reservation: its reservation; None if no limit applies.
        sent: whether it was sent to the server.
        sent_at: when it, or the last piece of its body so far, was written to a connection to the server; None before.
        received: when all of it had arrived, if that was later than its first bytes; 0 otherwise.
        attempted: when the first attempt was passed to the HTTP client; 0 before.
        attempt_began: the same of the last attempt.
        queued: seconds that it waited for busy servers, before all attempts together; None if it did not.
        queued_later: those of them that it waited after its first attempt had failed.
        first_byte: when the response began; None before.
        status: the status sent to the client; 0 before.
        repeated_as: the ``X-Request-Id`` of its last attempt, which the server saw; empty if it was sent once.
        attempts: the attempts before the last one, which failed.
        fallback: the model that was asked in place of the one that it names; empty if none was.
        entry_share: its share of its entry's limits; None if its entry has none, or once it was settled.
        error_code: the code of the gateway's error; empty without one.
        outcome: how it ended: ``completed``, ``refused``, ``client_disconnected``, ``upstream_failed``,
            ``upstream_error`` (the server reported an error in a stream), ``revoked``, ``cut`` or ``failed``; final
            once `finish` was called.
        ended_as: its outcome if the gateway ended it early: ``revoked``, because its key is no longer valid, or
            ``cut``, because somebody asked for it; empty otherwise.
        ended: when it ended; 0 before.
        bytes_in: received bytes of its body; final once it is over.
        bytes_out: sent bytes of the response's body; final once it is over.
        body_complete: whether its whole body arrived; final once it is over.
        usage: its usage, once it is over.
        cost: its cost in picodollars.
        background: the response that is generated in the background; None for every other request.
        trace: its place in a trace; None if it is not traced.
        contents: gathers its prompt and its answer for the log; None if nobody wants them.
        row_id: the id of its row in the ledger, once it has one of its own and `contents` are gathered; else empty.
    """

    __slots__ = (
        "attempt_began",
        "attempted",
        "attempts",
        "authorization",
        "background",
        "body_complete",
        "bytes_in",
        "bytes_out",
        "contents",
        "cost",
        "end_user",
        "ended",
        "ended_as",
        "entry_share",
        "error_code",
        "fallback",
        "first_byte",
        "group",
        "head",
        "meter",
        "model",
        "model_id",
        "outcome",
        "peer",
        "principal",
        "queued",
        "queued_later",
        "received",
        "repeated_as",
        "request_id",
        "reservation",
        "row_id",
        "said",
        "sent",
        "sent_at",
        "server",
        "started",
        "status",
        "trace",
        "usage",
    )

    def __init__(self, peer: Peer, started: float) -> None:
        self.peer = peer
        self.started = started
        self.head: RequestHead = NO_REQUEST_HEAD
        self.request_id = b""
        self.principal: Principal | None = None
        self.authorization: Authorization | None = None
        self.model = ""
        self.server: Server | None = None
        self.model_id = ""
        self.group = ""
        self.end_user: str | None = None
        self.said: Said = NOTHING_SAID
        self.meter: UsageMeter | None = None
        self.reservation: Reservation | None = None
        self.sent = False
        self.sent_at: float | None = None
        self.received = self.attempted = self.attempt_began = 0.0
        self.queued: float | None = None
        self.queued_later = 0.0
        self.first_byte: float | None = None
        self.status = 0
        self.repeated_as = ""
        self.attempts: tuple[FailedAttempt, ...] = ()
        self.fallback = ""
        self.entry_share: EntryShare | None = None
        self.error_code = ""
        self.outcome = ""
        self.ended_as = ""
        self.ended = 0.0
        self.bytes_in = self.bytes_out = 0
        self.body_complete = False
        self.usage: Usage = NOTHING_USED
        self.cost = 0
        self.background: BackgroundResponse | None = None
        self.trace: RequestTrace | None = None
        self.contents: Contents | None = None
        self.row_id = ""

    @property
    def all_said(self) -> Said:
        """What its headers and its body say for the ledger."""
        first = self.head.first
        if TAGS_HEADER in first or METADATA_HEADER in first:
            return together(said_in_headers(first), self.said)
        return self.said

    @property
    def overhead(self) -> float | None:
        """The seconds that the gateway took to pass it on once it had arrived, without its wait for a busy server.

        None if it was not passed on. Connecting to the server is the server's time.
        """
        if not self.attempted:
            return None
        seconds = self.attempted - (self.received or self.started)
        if self.queued is not None:
            seconds -= self.queued - self.queued_later
        # a clock may be set back; max() would take half of the time
        return seconds if seconds > 0.0 else 0.0

    def add_wait(self, seconds: float) -> None:
        """Add a wait for a busy server: a request may wait again after an attempt failed."""
        self.queued = seconds if self.queued is None else self.queued + seconds
        if self.attempted:
            self.queued_later += seconds

    @property
    def duration(self) -> float:
        """The seconds from its first byte to its end."""
        return self.ended - self.started

    @property
    def failed_attempts(self) -> str:
        """The attempts before the last one as text: ``gpu-1:8000 status_503, gpu-2:8000 upstream_timeout``."""
        return ", ".join(f"{each.server} {each.reason}" for each in self.attempts)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Whatever stands in its head where a key may stand, valid or not: nothing that is written may show it.

        It is what the credential headers carry, what the query gives as a key, and the segments below ``/key``. For
        refusals and failures: it costs a few microseconds.
        """
        target, secrets = self.head.target, carried(self.head.first)
        if b"?" not in target and b"/key/" not in target:
            return secrets
        path, _, query = target.decode("latin-1").partition("?")
        pairs = [pair.partition("=") for pair in query.split("&", _MOST_PARTS)[:_MOST_PARTS]]
        found = [value for name, _, value in pairs if _NAMES_A_KEY.search(name)]
        segments = path.partition("/key/")[2].split("/", _MOST_PARTS)[:_MOST_PARTS]
        found += [segment for segment in segments if not _ROUTE_WORD.fullmatch(segment)]
        found = [text for text in found if SHORTEST_SECRET <= len(text) <= _LONGEST_PART]
        return tuple(dict.fromkeys((*secrets, *found, *map(unquote, found), *map(unquote_plus, found))))

    def without_secrets(self, text: str) -> str:
        """Return a text for its client without `secrets`, and without what has the form of a key or a token."""
        return _CREDENTIAL.sub("…", strike_out(text, self.secrets, "…"))

    def on_sent(self, now: float) -> None:
        """Set when the request was written to a connection."""
        self.sent_at = now

    def finish(
        self, now: float, *, answered: bool, drained: bool, bytes_in: int, bytes_out: int, body_complete: bool
    ) -> None:
        """Set the values that are known only when the request is over.

        Args:
            now: the time.
            answered: whether a complete response was written, the server's or the gateway's own.
            drained: whether the drain timed out and aborted the remaining connections.
            bytes_in: received bytes of the request's body.
            bytes_out: sent bytes of the response's body.
            body_complete: whether the whole body arrived.
        """
        self.ended = now
        self.bytes_in = bytes_in
        self.bytes_out = bytes_out
        self.body_complete = body_complete
        outcome = self.outcome
        if not outcome or (outcome == "client_disconnected" and answered):
            self.outcome = outcome = self._own_outcome(answered)
        if drained and outcome == "client_disconnected":
            # the gateway closed the connection
            self.outcome, self.error_code = "failed", Draining.code
        elif (
            self.meter is not None
            and self.meter.is_stream
            and outcome in ("completed", "client_disconnected")
            and self.meter.failed
        ):
            # a client may leave because of the error
            self.outcome = "upstream_error"
        if self.ended_as:
            self.outcome = self.ended_as

    def _own_outcome(self, answered: bool) -> str:
        """Return the outcome of a request that no server answered."""
        if not answered:
            return "client_disconnected"
        if self.status >= 500 and self.error_code not in TURNED_AWAY:
            return "failed"
        return "refused" if self.error_code else "completed"
