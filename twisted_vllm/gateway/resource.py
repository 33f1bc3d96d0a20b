"""Everything below ``/vllm``: the resource that ties admission, forwarding and the relay together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network

from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from twisted_vllm.access.failures import FailedAuthentications
from twisted_vllm.access.records import Principal
from twisted_vllm.config.settings import Limits
from twisted_vllm.errors import Draining, GatewayError, MissingApiKey
from twisted_vllm.gateway.admission import Admission, Admitted, Entry
from twisted_vllm.gateway.forms import FormBody, streams
from twisted_vllm.gateway.forwarded import address_of, client_headers, said_by_proxies
from twisted_vllm.gateway.outgoing import dropped_from, outgoing_headers
from twisted_vllm.gateway.relay import Relay, RequestBody
from twisted_vllm.gateway.spool import InThread
from twisted_vllm.gateway.upgrade import UpgradeRelay, upgrade_headers
from twisted_vllm.wire.client import PassThroughClient
from twisted_vllm.wire.exchange import Exchange
from twisted_vllm.wire.headers import write_request_head
from twisted_vllm.wire.request import GatewayRequest, IStreamingResource

#: where the pass-through stands
MOUNT = b"/vllm"

#: bytes up to which a body that is in hand is looked into for its model although nothing depends on it, for the log
PEEK_LIMIT = 65_536


class Forwarding:
    """What is known of a request that was forwarded: the request's `note`, for its log record.

    Attributes:
        entry: the admitted head.
        admitted: the admitted request.
        relay: the response's way back.
    """

    __slots__ = ("admitted", "entry", "relay")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.admitted: Admitted | None = None
        self.relay: Relay | None = None


@implementer(IResource, IStreamingResource)
class PassThroughResource:
    """Forwards requests to vLLM servers."""

    isLeaf = True

    def __init__(
        self,
        *,
        admission: Admission,
        client: PassThroughClient,
        limits: Limits,
        trusted_proxies: Sequence[IPv4Network | IPv6Network],
        in_thread: InThread,
        failures: FailedAuthentications | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make the resource.

        Args:
            admission: decides.
            client: forwards.
            limits: caps.
            trusted_proxies: whose ``X-Forwarded-*`` headers are believed.
            in_thread: runs a function in another thread, for forms that are held in a file.
            failures: slows guessing down.
            now: the time in Unix seconds.
        """
        self._admission = admission
        self._forward = client.forward
        self._limits = limits
        self._trusted_proxies = tuple(trusted_proxies)
        self._in_thread = in_thread
        self._failures = FailedAuthentications(None) if failures is None else failures
        self._now = now

    def getChildWithDefault(self, name: bytes, request: GatewayRequest) -> IResource:
        """Return itself: every path below is its own."""
        return self

    def putChild(self, path: bytes, child: IResource) -> None:
        """Refuse: everything below is vLLM's."""
        raise TypeError("everything below /vllm belongs to the server behind it")

    def render(self, request: GatewayRequest) -> int:
        """Begin to answer `request`, whose body may still be on its way."""
        try:
            self._enter(request)
        except GatewayError as error:
            request.answer(error)
        return NOT_DONE_YET

    def _enter(self, request: GatewayRequest) -> None:
        if request.site.draining:
            raise Draining("The gateway is shutting down; send the request again.", retry_after=1)
        principal = request.principal = self._identify(request)
        entry = self._admission.enter(principal, request.method, request.uri[len(MOUNT) :])
        request.note = Forwarding(entry)
        limit = self._limits.max_held_body_bytes if entry.needs_model else PEEK_LIMIT
        if request.body_complete and request.body_received <= limit:
            self._admit(request, entry, request.take_body())
        elif entry.needs_model and streams(request):
            self._hold_form(request, entry)
        elif entry.needs_model:
            request.collect_body(limit, lambda body: self._collected(request, entry, body))
        else:
            self._admit(request, entry, None)

    def _identify(self, request: GatewayRequest) -> Principal:
        now = self._now()
        try:
            return self._admission.identify(request.head, now, request.method)
        except MissingApiKey as error:
            refusal = self._failures.judge(error, address_of(request, self._trusted_proxies), now)
        raise refusal

    def _hold_form(self, request: GatewayRequest, entry: Entry) -> None:
        FormBody(
            request,
            dropped_from(entry.principal),
            in_thread=self._in_thread,
            limit=self._limits.max_held_body_bytes,
            on_model=lambda form: self._collected(request, entry, form),
        ).hold_for_model()

    def _collected(self, request: GatewayRequest, entry: Entry, body: bytes | FormBody) -> None:
        try:
            self._admit(request, entry, body)
        except GatewayError as error:
            request.answer(error)
        except Exception:
            # the body may come long after `render`, where nobody else would answer for a fault of our own
            request.processingFailed(Failure())

    def _admit(self, request: GatewayRequest, entry: Entry, held: bytes | FormBody | None) -> None:
        head = request.head
        form = held if isinstance(held, FormBody) else None
        if form is None:
            admitted = self._admission.admit(entry, head, held)  # type: ignore[arg-type]  # it is no form
        else:
            admitted = self._admission.admit_form(entry, form.model, form.fault)
            form.name_model(admitted.renamed)
        body: bytes | RequestBody
        framing = None
        if admitted.body is None:
            body = form or RequestBody(request, dropped_from(entry.principal))
            if isinstance(body.length, int):
                framing = (b"Content-Length", b"%d" % body.length)
            else:
                framing = (b"Transfer-Encoding", b"chunked")
        else:
            body = admitted.body
            if body or b"content-length" in head or b"transfer-encoding" in head:
                framing = (b"Content-Length", b"%d" % len(body))
        peer = request.channel.peer
        forwarded = client_headers(
            peer.host,
            peer.secure,
            head.get(b"host"),
            said_by_proxies(request.raw_headers, self._trusted_proxies),
            self._trusted_proxies,
        )
        headers = outgoing_headers(
            request.raw_headers,
            request.header_names,
            server=admitted.server,
            principal=entry.principal,
            request_id=request.request_id,
            forwarded=forwarded,
            framing=framing,
            connection=head.get(b"connection"),
            expects_continue=held is None and request.awaits_continue(),
        )
        server = admitted.server
        if request.protocols:
            headers += upgrade_headers(request)
            relay: Relay = UpgradeRelay(request)
        else:
            relay = Relay(request)
        note = request.note
        note.admitted = admitted
        note.relay = request.work = relay
        written = write_request_head(request.method, server.base_path + admitted.path, headers)
        relay.exchange = exchange = Exchange(server, request.method, written, body or None, relay)
        self._forward(exchange)
