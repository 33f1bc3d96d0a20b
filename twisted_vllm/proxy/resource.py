"""Everything below ``/vllm``: the resource that ties admission, forwarding and the relay together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network

from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.config.settings import Limits, Server
from twisted_vllm.errors import Draining, GatewayError, MissingApiKey
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.http.headers import HeaderList, is_json
from twisted_vllm.http.server.request import GatewayRequest, IStreamingResource
from twisted_vllm.proxy.accounting import Accounting
from twisted_vllm.proxy.admission import Admission, Admitted, Entry
from twisted_vllm.proxy.authorization_cache import CachedAuthorization
from twisted_vllm.proxy.form_body import FormBody, streams
from twisted_vllm.proxy.form_spool import InThread
from twisted_vllm.proxy.forwarded import address_of, client_headers, said_by_proxies
from twisted_vllm.proxy.pending_reservation import PendingReservation
from twisted_vllm.proxy.relay import Relay, RequestBody
from twisted_vllm.proxy.upgrade import UpgradeRelay, upgrade_headers
from twisted_vllm.proxy.upstream_headers import dropped_from, outgoing_headers
from twisted_vllm.usage.meter import UsageMeter

#: where the pass-through stands
MOUNT = b"/vllm"

#: bytes up to which a body that is in hand is looked into for its model although nothing depends on it, for the log
PEEK_LIMIT = 65_536


class RequestContext:
    """What is known of a request that was forwarded: the request's `note`, for its log record.

    Attributes:
        entry: the admitted head.
        model: the model that the body names, by its own name; empty where it names none or was not read.
        server: the name of the server that it went to; empty before.
        charge: what it is charged with.
        relay: the response's way back.
    """

    __slots__ = ("charge", "entry", "model", "relay", "server")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.model = self.server = ""
        self.charge: UsageMeter | None = None
        self.relay: Relay | None = None


@implementer(IResource, IStreamingResource)
class PassThroughResource:
    """Forwards requests to vLLM servers.

    Attributes:
        client: sends them.
    """

    isLeaf = True

    def __init__(
        self,
        *,
        admission: Admission,
        client: PassThroughClient,
        limits: Limits,
        trusted_proxies: Sequence[IPv4Network | IPv6Network],
        in_thread: InThread,
        failures: AuthenticationThrottle | None = None,
        accounts: Accounting | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make the resource.

        Args:
            admission: decides.
            client: sends requests to servers.
            limits: caps.
            trusted_proxies: whose ``X-Forwarded-*`` headers are believed.
            in_thread: runs a function in another thread, for forms that are held in a file.
            failures: slows guessing down.
            accounts: reserve what requests use, and write it down; None lets all through.
            now: the time in Unix seconds.
        """
        self._admission = admission
        self.client = client
        self._limits = limits
        self._trusted_proxies = tuple(trusted_proxies)
        self._in_thread = in_thread
        self._failures = AuthenticationThrottle(None) if failures is None else failures
        self._accounts = accounts
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
        known = request.known
        passage: CachedAuthorization | None = None if known is None else known.note
        if passage is not None and passage.holds(self._admission.changes, self._now(), request.channel.peer):
            entry = passage.entry
            request.principal = entry.principal
        else:
            principal = request.principal = self._identify(request)
            entry = self._admission.enter(principal, request.method, request.uri[len(MOUNT) :])
            if known is not None:
                known.note = passage = CachedAuthorization(entry, self._admission.changes, request.channel.peer)
        request.note = RequestContext(entry)
        most = self._limits.max_held_body_bytes
        if request.body_complete and request.body_received <= (most if entry.needs_body else PEEK_LIMIT):
            self._admit(request, entry, request.take_body(), passage)
        elif entry.needs_body and streams(request):
            self._hold_form(request, entry)
        elif (
            entry.needs_body
            or (
                # what need not be read, and is too large for it, streams
                entry.wants_body
                and request.body_length is not None
                and request.body_length <= most
                and is_json(request.head)
            )
            or (
                # who is limited or blocked is named in it
                entry.route.takes_model
                and self._accounts is not None
                and self._accounts.needs_end_user
                and is_json(request.head)
            )
        ):
            request.collect_body(most, lambda body: self._collected(request, entry, body))
        else:
            self._admit(request, entry, None, None)

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
            self._admit(request, entry, body, None)
        except GatewayError as error:
            request.answer(error)
        except Exception:
            # the body may come long after `render`, where nobody else would answer for a fault of our own
            request.processingFailed(Failure())

    def _admit(
        self, request: GatewayRequest, entry: Entry, held: bytes | FormBody | None, passage: CachedAuthorization | None
    ) -> None:
        body: bytes | RequestBody
        if isinstance(held, FormBody):
            admitted = self._admission.admit_form(entry, held.model, held.fault)
            held.name_model(admitted.renamed)
            body = held
        else:
            admitted = self._admission.admit(entry, request.head, held)
            body = RequestBody(request, dropped_from(entry.principal)) if admitted.body is None else admitted.body
        if self._accounts is None:
            self._send(request, admitted, body, passage)
            return
        charge, reserved = self._accounts.open(request, entry, admitted)
        request.note.charge = charge
        if charge is not None and charge.audio is not None:
            if isinstance(body, bytes):
                charge.audio.feed(body)
            else:
                body.watch = charge.audio.feed
        if reserved is None or charge is None:
            self._send(request, admitted, body, passage)
        else:
            PendingReservation(request, body, charge, reserved).then(
                lambda: self._send(request, admitted, body, passage)
            )

    def _send(
        self,
        request: GatewayRequest,
        admitted: Admitted,
        body: bytes | RequestBody,
        passage: CachedAuthorization | None,
    ) -> None:
        note = request.note
        entry = note.entry
        server = admitted.server
        if passage is not None and admitted.body is not None:
            if server not in passage.heads:
                has_body = b"content-length" in request.head
                passage.keep(
                    server,
                    server.url + admitted.path,
                    self._headers(request, entry, server, (b"Content-Length", b"") if has_body else None, b"", False),
                )
            url, headers = passage.write(server, len(admitted.body), request.request_id)
        else:
            url = server.url + admitted.path
            pairs = self._headers(
                request,
                entry,
                server,
                _framing(body, request.head),
                request.request_id,
                not isinstance(body, bytes) and request.awaits_continue(),
            )
            if request.protocols:
                pairs += upgrade_headers(request)
            headers = RawHeaders.from_pairs(pairs)
        relay = UpgradeRelay(request) if request.protocols else Relay(request)
        relay.charge = note.charge
        # not what was admitted: that holds the body, which is given up once it was sent
        note.model = admitted.model
        note.server = server.name
        note.relay = request.work = relay
        relay.await_response(
            self.client.request(
                request.method,
                url,
                headers=headers,
                data=body,
                total_timeout=server.timeouts.total,
                protocols=request.protocols,
                informational=request.informational,
                left_queue=relay.left_queue,
            )
        )

    def _headers(
        self,
        request: GatewayRequest,
        entry: Entry,
        server: Server,
        framing: tuple[bytes, bytes] | None,
        request_id: bytes,
        expects_continue: bool,
    ) -> HeaderList:
        peer = request.channel.peer
        proxies = self._trusted_proxies
        head = request.head
        return outgoing_headers(
            request.raw_headers,
            request.header_names,
            server=server,
            principal=entry.principal,
            request_id=request_id,
            forwarded=client_headers(
                peer.host, peer.secure, head.get(b"host"), said_by_proxies(request.raw_headers, proxies), proxies
            ),
            framing=framing,
            connection=head.get(b"connection"),
            expects_continue=expects_continue,
        )


def _framing(body: bytes | RequestBody, head: Mapping[bytes, bytes]) -> tuple[bytes, bytes] | None:
    """Return the header that says where the body ends, or None for a request without one."""
    if isinstance(body, bytes):
        if body or b"content-length" in head or b"transfer-encoding" in head:
            return (b"Content-Length", b"%d" % len(body))
        return None
    if isinstance(body.length, int):
        return (b"Content-Length", b"%d" % body.length)
    return (b"Transfer-Encoding", b"chunked")
