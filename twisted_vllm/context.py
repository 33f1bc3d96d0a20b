"""What the gateway knows of one request: one typed value that travels from the first byte to the log line."""

from __future__ import annotations

import msgspec

from twisted_vllm.api_routes import Route
from twisted_vllm.auth.records import Principal
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import Draining
from twisted_vllm.http.headers import NO_REQUEST_HEAD, RequestHead
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.usage.meter import UsageMeter
from twisted_vllm.usage.records import NOTHING_USED, Usage


class Peer:
    """The other end of a client connection.

    Attributes:
        host: its address; empty on a UNIX socket.
        secure: whether the connection is TLS.
    """

    __slots__ = ("host", "secure")

    def __init__(self, host: str, secure: bool) -> None:
        self.host = host
        self.secure = secure


class Authorization(msgspec.Struct, frozen=True, gc=False):
    """What the head of a request was authorized for.

    Attributes:
        principal: who asks.
        route: the route that it asks for.
        path: the path that the server sees, raw, without the query.
        forwarded: the path and query for the server, raw, below its base path.
        needs_body: whether the body must be buffered before a server is chosen.
        wants_body: whether it is buffered where that is possible; the ledger reads it.
        payer: who asks, as the ledger keeps it.
    """

    principal: Principal
    route: Route
    path: bytes
    forwarded: bytes
    needs_body: bool
    wants_body: bool
    payer: msgspec.Raw


class RequestContext:
    """One request.

    Times are in the reactor's seconds, which begin in 1970.

    Attributes:
        peer: where it comes from.
        started: when its first byte arrived.
        head: its head; `NO_REQUEST_HEAD` until that was read.
        request_id: the ``X-Request-Id`` that client and server see; empty before it is dispatched.
        principal: who asks; None where nobody was authenticated.
        authorization: what it was authorized for; None outside of ``/vllm``, or where it was refused.
        model: the model that it names, under the server's name for it; empty where it names none or was not read.
        server: the server that was chosen; None before.
        end_user: the end user on whose behalf it is made, as the caller says.
        meter: measures what it uses; None where nothing is measured.
        reservation: what is reserved of its limits; None where nothing is limited.
        sent: whether it was sent to the server.
        queued: seconds in which it waited for a busy server; None where it did not.
        first_byte: when the response began; None before.
        status: the status that was sent to the client; 0 before.
        error_code: the code of the gateway's own error; empty without one.
        outcome: how it ended: ``completed``, ``refused``, ``client_disconnected``, ``upstream_failed``, ``revoked`` or
            ``failed``; final once `finish` was called.
        revoked: whether it was ended because its key is not valid any more.
        ended: when it was over; 0 before.
        bytes_in: the bytes of its body that arrived; final once it is over.
        bytes_out: the bytes of the response's body that were sent; final once it is over.
        body_complete: whether its whole body arrived; final once it is over.
        usage: what it used, once it is over.
        cost: what that costs, in picodollars.
    """

    # class attributes are the defaults: a new context costs only what differs
    head: RequestHead = NO_REQUEST_HEAD
    request_id = b""
    principal: Principal | None = None
    authorization: Authorization | None = None
    model = ""
    server: Server | None = None
    end_user: str | None = None
    meter: UsageMeter | None = None
    reservation: Reservation | None = None
    sent = False
    queued: float | None = None
    first_byte: float | None = None
    status = 0
    error_code = ""
    outcome = ""
    revoked = False
    ended = 0.0
    bytes_in = bytes_out = 0
    body_complete = False
    usage: Usage = NOTHING_USED
    cost = 0

    def __init__(self, peer: Peer, started: float) -> None:
        self.peer = peer
        self.started = started

    @property
    def duration(self) -> float:
        """Seconds from its first byte to its end."""
        return self.ended - self.started

    def left_queue(self, seconds: float | None, sent: bool) -> None:
        """Set how long the request waited for its server, or None, and whether it was sent after that."""
        self.queued = seconds
        self.sent = sent

    def finish(
        self, now: float, *, answered: bool, drained: bool, bytes_in: int, bytes_out: int, body_complete: bool
    ) -> None:
        """Set what is only known when the request is over.

        Args:
            now: the time.
            answered: whether a whole response was written, the server's or the gateway's own.
            drained: whether the gateway ran out of time for its drain, and cut what was left.
            bytes_in: bytes of the request's body that arrived.
            bytes_out: bytes of the response's body that were sent.
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
        if self.revoked:
            self.outcome = "revoked"

    def _own_outcome(self, answered: bool) -> str:
        """Return how a request ended that no server answered."""
        if not answered:
            return "client_disconnected"
        if self.status >= 500 and self.error_code != Draining.code:
            return "failed"
        return "refused" if self.error_code else "completed"
