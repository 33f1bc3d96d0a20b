"""Sends admitted requests to servers: to another one if the first fails, and for another model if all do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed

from twisted_vllm.api_routes import ModelPlace, RouteClass
from twisted_vllm.auth.records import PREFLIGHT, Principal
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.bodies.held_pieces import Rope
from twisted_vllm.bodies.prompt_prefix import prompt_prefix
from twisted_vllm.config.settings import RetrySettings, RoutingSettings, Server
from twisted_vllm.context import Authorization, Contents, FailedAttempt, RequestContext, RequestTrace, RequestTracer
from twisted_vllm.errors import (
    Draining,
    GatewayError,
    ModelNotAllowed,
    ModelNotFound,
    OutOfSockets,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from twisted_vllm.http.client.held_body_producer import HeldBodyProducer
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.http.headers import HeaderList, is_form, is_json
from twisted_vllm.http.net.bounded_turns import Cooperate
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.lifecycle import Lifecycle
from twisted_vllm.proxy.accounting import Accounting
from twisted_vllm.proxy.act_log import ActedOn
from twisted_vllm.proxy.admission import Admission, Admitted
from twisted_vllm.proxy.authorization_cache import CachedAuthorization, HeaderFormat
from twisted_vllm.proxy.background_responses import BackgroundResponses
from twisted_vllm.proxy.contents_relay import ContentsRelay, LearningContentsRelay
from twisted_vllm.proxy.form_body import FormBody
from twisted_vllm.proxy.forwarded import EVERYBODY, ClientAddresses, client_headers, said_by_proxies
from twisted_vllm.proxy.learning_relay import LearningRelay
from twisted_vllm.proxy.max_forwards import COUNTED_METHODS, MAX_FORWARDS, one_less
from twisted_vllm.proxy.pending_step import PendingStep
from twisted_vllm.proxy.relay import HELD, RELAYED, TAKEN, Relay, RequestBody, Verdict, cause_of_cut
from twisted_vllm.proxy.server_failures import ANSWERED, RETRIED, log_failure, log_nowhere
from twisted_vllm.proxy.upgrade import UpgradeRelay, upgrade_headers
from twisted_vllm.proxy.upstream_headers import REQUEST_ID, outgoing_headers
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.upstreams.breaker import fault_of_status
from twisted_vllm.upstreams.dispatcher import NO_ROUTING, Ask, Dispatcher, Placement
from twisted_vllm.upstreams.kv_caches import KvCaches
from twisted_vllm.upstreams.own_requests import read_at_most
from twisted_vllm.upstreams.policies import RoutingRequest
from twisted_vllm.upstreams.response_places import ResponsePlaces
from twisted_vllm.upstreams.router import ModelGroup
from twisted_vllm.upstreams.server_state import ServerState
from twisted_vllm.upstreams.tokenizing import TOKENIZED
from twisted_vllm.usage.readers.uploaded_audio import UploadedAudio

#: the most models that are tried in place of one
MOST_FALLBACKS = 5
#: how many servers may take a request and lose it: it may be what breaks them
MOST_LOST = 2
#: the maximum size of a refusal that is read, in bytes
MOST_REFUSAL = 1_048_576
#: how vLLM and others say that a prompt is too long for the model
_TOO_LONG = re.compile(
    rb"maximum (context|model) length|longer than the maximum|context_length_exceeded|max_model_len", re.IGNORECASE
)


#: stands for a request of which nothing is sent again
_DROPPED: Any = None


class GatheredContents(Contents, Protocol):
    """Gathers the prompt of a body that streams, and the answer."""

    def watch_form(self, content_type: bytes) -> Callable[[bytes], None]:
        """Return what takes each piece of a form."""

    def watch_json(self) -> Callable[[bytes], None]:
        """Return what takes each piece of JSON."""


class KeepsContents(Protocol):
    """Keeps prompts and answers for traces and sinks."""

    def begin(
        self, context: RequestContext, body: bytes | HeldBody | None, form: bool, of_entries: str | None
    ) -> GatheredContents | None:
        """Return what gathers those of a request; None keeps nothing. See `BodiesLog.begin`."""


class Forwarder:
    """Sends requests to servers. It has what all requests share."""

    def __init__(
        self,
        *,
        admission: Admission,
        dispatcher: Dispatcher,
        client: PassThroughClient,
        addresses: ClientAddresses = EVERYBODY,
        cooperate: Cooperate,
        clock: Any,
        accounting: Accounting | None = None,
        lifecycle: Lifecycle | None = None,
        background: BackgroundResponses | None = None,
        routing: RoutingSettings,
        retry: RetrySettings,
        session_header: str,
        places: ResponsePlaces | None = None,
        kv_caches: KvCaches | None = None,
    ) -> None:
        """Set up.

        Args:
            admission: writes a request for a server, and admits it for another model.
            dispatcher: places requests on servers.
            client: sends requests to servers.
            addresses: knows which proxies are trusted.
            cooperate: runs an iterator in steps, for large bodies that are held.
            clock: the reactor's clock (``IReactorTime``).
            accounting: meters and limits requests; None does neither.
            lifecycle: the observers of requests.
            background: follows responses that are generated in the background; None follows none.
            routing: how often a request is sent again, and what is tried in its model's place.
            retry: which answers are followed by another attempt.
            session_header: the header that names a request's session.
            places: learns where responses are stored; None learns nothing.
            kv_caches: what is in the servers' prefix caches; None if no server may tell.
        """
        self.admission = admission
        self.dispatcher = dispatcher
        self.client = client
        self.addresses = addresses
        self.cooperate = cooperate
        self.clock = clock
        self.accounting = accounting
        self.lifecycle = Lifecycle() if lifecycle is None else lifecycle
        self.background = background
        #: attempts that the budget of retries did not allow
        self.retries_denied = 0
        #: keeps prompts and answers; None where nobody wants any
        self.contents: KeepsContents | None = None
        self.places = places
        self.kv_caches = kv_caches
        #: writes acts on several servers to the audit log
        self.record_act: Callable[[RequestContext, Sequence[ActedOn]], None] = lambda context, acted: None
        #: assigns trace and span ids to requests; None without traces
        self.tracer: RequestTracer | None = None
        self.reconfigure(routing, retry, session_header)

    def reconfigure(self, routing: RoutingSettings, retry: RetrySettings, session_header: str) -> None:
        """Use other settings from now on; the arguments are the constructor's."""
        self.retries = routing.num_retries
        self.retry_after = routing.retry_after
        self.statuses = frozenset(retry.statuses)
        self.session_header = session_header.lower().encode("ascii")

    def forward(
        self,
        request: GatewayRequest,
        authorization: Authorization,
        admitted: Admitted,
        streamed: RequestBody | None,
        cached: CachedAuthorization | None,
    ) -> None:
        """Send an admitted request to a server, and relay the answer.

        Args:
            request: the request.
            authorization: the authorization of its head.
            admitted: the admitted request.
            streamed: the body if it streams; None if it is in hand.
            cached: the cache entry of its head, or None.

        Raises:
            GatewayError: as from `Accounting.open`, `Dispatcher.place` and `Admission.prepare`.
        """
        Forwarding(self, request, authorization, streamed, cached).admitted(admitted)

    def headers(
        self,
        context: RequestContext,
        server: Server,
        framing: tuple[bytes, bytes] | None,
        *,
        expects_continue: bool,
        trace: RequestTrace | None = None,
    ) -> HeaderList:
        """Return the headers of a request for a server.

        Args:
            context: the request's context.
            server: the server.
            framing: the header that frames the body, or None.
            expects_continue: whether the client waits for the server's ``100 Continue``.
            trace: the trace that the server is told; None passes on what the client says of its own.
        """
        principal = context.principal
        assert principal is not None
        peer = context.peer
        proxies = self.addresses.trusted
        head = context.head
        counts = head.method in COUNTED_METHODS and MAX_FORWARDS in head.first
        return outgoing_headers(
            one_less(head.headers) if counts else head.headers,
            head.names,
            server=server,
            principal=principal,
            request_id=context.request_id,
            forwarded=client_headers(
                peer.host, peer.secure, head.first.get(b"host"), said_by_proxies(head.headers, proxies), proxies
            ),
            framing=framing,
            connection=head.first.get(b"connection"),
            expects_continue=expects_continue,
            trace=None if trace is None or self.tracer is None else self.tracer.headers(trace),
        )


class Forwarding:
    """One request, from its admission to the first byte of its answer."""

    __slots__ = (
        "_admitted",
        "_attempts",
        "_authorization",
        "_cached",
        "_fallbacks",
        "_forwarder",
        "_group",
        "_lost",
        "_placement",
        "_relay",
        "_request",
        "_routing",
        "_since",
        "_streamed",
        "_tried",
    )

    _admitted: Admitted
    _group: ModelGroup
    _placement: Placement
    # what the policy of the group may look at; None until it is asked
    _routing: RoutingRequest | None

    def __init__(
        self,
        forwarder: Forwarder,
        request: GatewayRequest,
        authorization: Authorization,
        streamed: RequestBody | None,
        cached: CachedAuthorization | None,
    ) -> None:
        self._forwarder = forwarder
        self._request = request
        self._authorization = authorization
        self._streamed = streamed
        self._cached = cached
        self._attempts = 0
        # servers that took the request and lost it
        self._lost = 0
        self._tried: tuple[ServerState, ...] = ()
        self._fallbacks: tuple[str, ...] | None = None
        self._relay: Relay | None = None
        self._since = 0.0

    def admitted(self, admitted: Admitted) -> None:
        """Reserve what the request may use, and send it.

        Raises:
            GatewayError: it is refused.
        """
        self._admitted = admitted
        self._group = admitted.serving.group
        self._routing = None
        forwarder, context = self._forwarder, self._request.context
        self._group.budget.began()
        # do not keep `admitted` in the context: it holds the body
        context.model = admitted.serving.model
        context.group = self._group.name
        destinations = self._group.destinations
        if len(destinations) == 1:
            context.server = destinations[0].server
        if admitted.background and forwarder.background is not None:
            context.background = forwarder.background.begin(self._authorization, admitted)
        reserved = None
        if forwarder.accounting is not None:
            reserved = forwarder.accounting.open(context, self._authorization, admitted)
            if context.meter is not None and context.meter.audio is not None:
                self._watch_audio(context.meter.audio)
        if forwarder.contents is not None:
            self._keep_contents(forwarder.contents)
        if reserved is None:
            self._find_place()
        else:
            PendingStep(self._request, self._streamed, reserved).then(self._reserved)

    def _reserved(self, reservation: Reservation) -> None:
        self._request.context.reservation = reservation
        self._find_place()

    def _watch_audio(self, audio: UploadedAudio) -> None:
        if self._streamed is not None:
            self._streamed.watch = audio.feed
            return
        body = self._admitted.body
        if isinstance(body, bytes):
            audio.feed(body)
        elif body is not None:
            for piece in body.rope():
                audio.feed(piece)

    def _keep_contents(self, keeps: KeepsContents) -> None:
        """Begin to gather the prompt and the answer, if somebody wants them."""
        context, admitted, streamed = self._request.context, self._admitted, self._streamed
        context.contents = found = keeps.begin(context, admitted.body, admitted.form, self._group.log_bodies)
        if found is None or streamed is None:
            return
        head = context.head.first
        if admitted.form or is_form(head):
            take = found.watch_form(head.get(b"content-type", b""))
        elif is_json(head):
            take = found.watch_json()
        else:
            return
        before = streamed.watch
        streamed.watch = take if before is None else partial(_both, before, take)

    # a place

    def _find_place(self) -> None:
        """Ask for a place, once it is known which tokens the servers' caches should have.

        Raises:
            NoHealthyUpstream, ServerBusy: as `_place`.
        """
        caches = self._forwarder.kv_caches if self._group.lone is None else None
        asking = self._tokens(caches) if caches else None
        if asking is None:
            self._place()
        else:
            PendingStep(self._request, self._streamed, asking).then(lambda _: self._place())

    def _tokens(self, caches: KvCaches) -> Deferred[None] | None:
        """Find out the tokens of the prompt, if they decide where it goes."""
        group, admitted, principal = self._group, self._admitted, self._authorization.principal
        body = admitted.body
        if (
            not group.policy.reads_prompt
            or not isinstance(body, bytes)
            or self._authorization.route.row.path not in TOKENIZED
        ):
            return None
        now = self._forwarder.clock.seconds()
        usable = [each for each in group.destinations if each.state.is_usable(now)]
        if len(usable) < 2:
            return None
        prefix = self._routing_for(principal).prefix
        model = admitted.serving.name_at(usable[0]) or admitted.serving.model
        return caches.prepare([each.server for each in usable], prefix, body, model, principal.cache_salt)

    def _place(self) -> None:
        """Ask for a place on a server of the model.

        Raises:
            NoHealthyUpstream, ServerBusy: there is none, and no other model may be tried.
        """
        forwarder, group = self._forwarder, self._group
        dispatcher = forwarder.dispatcher
        try:
            placed: Placement | Deferred[Placement] | None = None
            if group.lone is not None:
                placed = dispatcher.place_at_once(group)
            if placed is None:
                placed = dispatcher.place(group, self._ask())
        except GatewayError as error:
            if not self._fall_back(group.fallbacks):
                log_nowhere(group.name, error)
                raise error
            return
        if isinstance(placed, Placement):
            self._send(placed)
            return
        self._since = forwarder.clock.seconds()
        placed.addErrback(self._waited_in_vain)
        PendingStep(self._request, self._streamed, placed, self._not_placed).then(self._placed_later)

    def _ask(self) -> Ask:
        admitted, principal = self._admitted, self._authorization.principal
        serving, group = admitted.serving, self._group
        routing = NO_ROUTING
        policy = group.policy
        if group.lone is None and (policy.reads_session or policy.reads_prompt):
            routing = self._routing_for(principal)
        route = self._authorization.route
        asleep = unwell = admitted.steered
        unlimited = principal is PREFLIGHT
        if not route.takes_model and route.row.model is not ModelPlace.EVENT:
            # it must work while the model's requests wait
            asleep = unlimited = True
            unwell = unwell or route.route_class is RouteClass.PRIVILEGED
        tokens = 0
        if group.counts_tokens and self._forwarder.accounting is not None:
            tokens = self._forwarder.accounting.expected_tokens(self._request.context)
        return Ask(
            principal.key_id or principal.kind,
            principal.priority or 0,
            routing,
            tokens,
            self._tried,
            serving.server,
            unlimited,
            asleep,
            unwell,
        )

    def _routing_for(self, principal: Principal) -> RoutingRequest:
        """Return what the policy may look at: the same for the tokens, the place and each attempt."""
        if self._routing is not None:
            return self._routing
        admitted, policy = self._admitted, self._group.policy
        session, prefix = b"", tuple[int, ...]()
        if policy.reads_session:
            named = self._request.context.head.first.get(self._forwarder.session_header, b"")
            # a session of one key is not that of another
            session = b"%b %b" % (principal.key_id.encode("ascii"), named)
        if policy.reads_prompt and admitted.body and not admitted.form:
            prefix = prompt_prefix(admitted.body, model=admitted.serving.model, salt=principal.cache_salt or "")
        self._routing = RoutingRequest(session, prefix)
        return self._routing

    def _placed_later(self, placement: Placement) -> None:
        self._request.context.add_wait(placement.queued or 0.0)
        self._send(placement)

    def _waited_in_vain(self, failure: Failure) -> Failure:
        # also if the client left
        self._request.context.add_wait(self._forwarder.clock.seconds() - self._since)
        return failure

    def _not_placed(self, error: GatewayError) -> bool:
        if isinstance(error, Draining):
            return False
        if self._fall_back(self._group.fallbacks):
            return True
        log_nowhere(self._group.name, error)
        return False

    # an attempt

    def _send(self, placement: Placement) -> None:
        """Send the request to the server where it is placed.

        Raises:
            GatewayError: it cannot be written for that server.
        """
        self._placement = placement
        if placement.share is not None:
            self._request.context.entry_share = placement
        try:
            self._attempt(placement)
        except BaseException:
            placement.ended()
            raise

    def _attempt(self, placement: Placement) -> None:
        request, forwarder, admitted, cached = self._request, self._forwarder, self._admitted, self._cached
        context = request.context
        destination = placement.destination
        server = context.server = destination.server
        entry = destination.entry
        context.model_id = "" if entry is None else entry.model_id
        prepared = forwarder.admission.prepare(self._authorization, admitted, destination)
        body: bytes | Rope | RequestBody
        if prepared.body is not None:
            body = prepared.body
        else:
            assert self._streamed is not None
            body = self._streamed
            if isinstance(body, FormBody):
                body.name_model(prepared.renamed)
        if context.background is not None:
            context.background.id = prepared.response_id
        if context.meter is not None and forwarder.accounting is not None:
            forwarder.accounting.placed(context, self._authorization, admitted, destination, prepared.response_id)
        if not context.sent:
            for observe in forwarder.lifecycle.admitted:
                observe(context)
        first = context.head.first
        tracer = forwarder.tracer
        trace = None if tracer is None else tracer.attempt(context)
        if cached is not None and prepared.body is not None:
            kind, peer = forwarder.addresses.kind_of(context.peer), context.peer.written
            # most are neither traced nor secure nor from a trusted proxy
            key: object = server if kind is False and trace is None else (server, kind, trace and bool(trace.state))
            form = cached.formats.get(key)
            if form is None:
                framing = (b"Content-Length", b"") if b"content-length" in first else None
                pairs = forwarder.headers(context, server, framing, expects_continue=False, trace=trace)
                form = HeaderFormat(server.url + admitted.path, pairs, peer)
                cached.formats.keep(key, form, len(admitted.path))
            url = form.url
            varying = first if trace is None or tracer is None else {**first, **dict(tracer.headers(trace))}
            headers = form.write(len(prepared.body), context.request_id, varying, peer)
        else:
            waits = isinstance(body, RequestBody) and request.awaits_continue()
            pairs = forwarder.headers(context, server, framing_of(body, first), expects_continue=waits, trace=trace)
            if context.head.protocols:
                pairs += upgrade_headers(context.head)
            url = server.url + admitted.path
            headers = RawHeaders.from_pairs(pairs)
        if context.sent:
            headers = _repeat(request, headers)
        again = partial(_repeat, request, headers) if self._authorization.route.repeatable else None
        relay = self._relay = self._new_relay()
        request.work = relay
        context.sent = True
        context.attempt_began = began = forwarder.clock.seconds()
        if not context.attempted:
            context.attempted = began
        self._attempts += 1
        for observe in forwarder.lifecycle.sent:
            observe(context)
        destination.state.awaiting.add(self)
        relay.await_response(
            forwarder.client.request(
                request.method,
                url,
                headers=headers,
                data=HeldBodyProducer(body, forwarder.cooperate) if isinstance(body, Rope) else body,
                server=server,
                protocols=context.head.protocols,
                informational=request.informational,
                on_sent=context.on_sent,
                again=again,
                on_ended=placement.ended,
            )
        )

    @property
    def path_prefix(self) -> bytes:
        """The path that proxies in front of the gateway cut off."""
        return self._forwarder.addresses.prefix(self._request.context)

    def _new_relay(self) -> Relay:
        request, places = self._request, self._forwarder.places
        if request.context.head.protocols:
            return UpgradeRelay(request, self)
        gathers = request.context.contents is not None
        if places is not None and self._authorization.stores and self._authorization.principal.is_administrator:
            return (LearningContentsRelay if gathers else LearningRelay)(request, self, places)
        return ContentsRelay(request, self) if gathers else Relay(request, self)

    # what became of it

    def answered(self, response: UpstreamResponse) -> Verdict:
        """The head of an answer came; return what becomes of it."""
        placement = self._placement
        status = response.head.status
        now = self._forwarder.clock.seconds()
        placement.responded(status, now)
        if status < 300 and not response.complete and self._may_go_on:
            # vLLM sends the head of a stream before it begins to compute
            return HELD
        placement.destination.state.awaiting.discard(self)
        if status >= 400:
            if status in self._forwarder.statuses and self._goes_on(f"status_{status}", now, status):
                response.stopProducing()
                return TAKEN
            if (
                status == 400
                and self._group.context_fallbacks
                and self._is_in_hand
                and (response.head.length or 0) <= MOST_REFUSAL
            ):
                self._read_refusal(response)
                return TAKEN
            if (fault := fault_of_status(status)) is not None:
                log_failure(self._request.context, placement.destination.state.name, fault, ANSWERED)
        placement.began_to_answer(now)
        self._over()
        return RELAYED

    def began(self) -> None:
        """The answer goes to the client: nothing is sent again."""
        placement = self._placement
        placement.destination.state.awaiting.discard(self)
        placement.began_to_answer(self._forwarder.clock.seconds())
        self._over()

    def failed(self, error: GatewayError) -> bool:
        """The attempt failed before the head of an answer came; return whether another takes its place."""
        placement = self._placement
        placement.destination.state.awaiting.discard(self)
        # without a socket, it is the gateway's own fault
        if not isinstance(error, OutOfSockets):
            now = self._forwarder.clock.seconds()
            sent = self._request.context.sent_at is not None
            is_fault = placement.failed(error, now, sent=sent)
            # a request that takes long takes as long elsewhere
            ends = sent and isinstance(error, UpstreamTimeout) and not is_fault
            if sent:
                self._lost += 1
                ends = ends or self._lost >= MOST_LOST
            if not ends and self._goes_on(error.code, now, error=error):
                return True
            if error.status >= 500:
                log_failure(self._request.context, placement.destination.state.name, error.code, ANSWERED, error)
        self._over()
        return False

    def cut(self, error: GatewayError) -> None:
        """The answer was cut short."""
        self._placement.failed(error, self._forwarder.clock.seconds(), sent=True)

    def cancelled(self) -> None:
        """The client has disconnected."""
        self._placement.destination.state.awaiting.discard(self)
        self._over()

    def server_died(self, reason: str) -> None:
        """The server was found dead while the request waits for its answer."""
        if self._relay is not None:
            error = UpstreamUnreachable("The vLLM server does not answer any more.")
            error.fault = reason
            self._relay.fail(error)

    def _over(self) -> None:
        """Drop the body, which is not sent again, and break the reference cycle."""
        self._admitted = _DROPPED
        self._relay = self._streamed = self._cached = None

    # another attempt

    @property
    def _is_in_hand(self) -> bool:
        """Whether the whole request can be sent again."""
        return self._streamed is None and not self._request.context.head.protocols

    @property
    def _may_go_on(self) -> bool:
        """Whether there is another server or model for it, should this server fail."""
        group = self._group
        elsewhere = group.lone is None or bool(group.fallbacks)
        return elsewhere and self._is_in_hand and self._authorization.route.fails_over

    def _goes_on(self, reason: str, now: float, status: int = 0, error: GatewayError | None = None) -> bool:
        """Send the request to another server, or for another model; return whether that may be done.

        Args:
            reason: why the attempt failed.
            now: the time.
            status: the status of the server's answer; 0 without one.
            error: the error, if no answer came.
        """
        forwarder, group = self._forwarder, self._group
        state = self._placement.destination.state
        context = self._request.context
        sent = context.sent_at is not None
        if not self._is_in_hand or (sent and not self._authorization.route.fails_over):
            return False
        if sent and context.background is not None:
            # the server may go on generating it, and nobody could ask for it any more
            return False
        tried = (*self._tried, state)
        # one that waits for its second attempt is not in flight at a server
        in_flight = sum({each.state: each.state.in_flight_here for each in group.destinations}.values()) + len(
            group.queue
        )
        again = (
            self._attempts <= forwarder.retries and not self._is_bound and forwarder.dispatcher.can_place(group, tried)
        )
        if again and not group.budget.take(now, sent=sent, in_flight=in_flight):
            forwarder.retries_denied += 1
            again = False
        if not again and not self._other_models(group.fallbacks):
            return False
        log_failure(context, state.name, reason, RETRIED, error)
        before = self._keep_attempt(reason, now, status)
        if again:
            self._tried = tried
            self._leave_attempt()
            self._try_again()
            return True
        if self._fall_back(group.fallbacks):
            return True
        context.attempts = before
        return False

    def _keep_attempt(self, reason: str, now: float, status: int) -> tuple[FailedAttempt, ...]:
        """Keep a failed attempt, which another is to follow; return those before it."""
        context = self._request.context
        span_id = "" if context.trace is None else context.trace.attempt_id
        server = self._placement.destination.state.name
        failed = FailedAttempt(server, reason, context.attempt_began, now, status, span_id)
        before, context.attempts = context.attempts, (*context.attempts, failed)
        return before

    def _leave_attempt(self) -> None:
        """Settle what the failed attempt took of its entry's limits; nothing works on the request until the next."""
        context = self._request.context
        share, context.entry_share = context.entry_share, None
        if share is not None:
            share.used(0, sent=context.sent_at is not None)
        context.sent_at = None

    def _try_again(self) -> None:
        """Send the request to another server, after ``retry_after``."""
        forwarder = self._forwarder
        if forwarder.retry_after:
            waiting: Deferred[None] = deferLater(forwarder.clock, forwarder.retry_after)
            PendingStep(self._request, None, waiting).then(lambda _: self._place())
        else:
            self._go(self._place)

    def _go(self, step: Callable[[], None]) -> None:
        """Take a step that nobody waits for: its error is the request's answer."""
        try:
            step()
        except GatewayError as error:
            self._request.answer(error)
        except Exception:
            self._request.processingFailed(Failure())

    # another model

    @property
    def _is_bound(self) -> bool:
        """Whether only one server of the model has what the request continues."""
        server = self._admitted.serving.server
        return server is not None and any(each.server.url == server.url for each in self._group.destinations)

    def _other_models(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return which models may still be tried in place of this one; `names` if none was tried yet."""
        if not self._authorization.route.takes_model or self._is_bound:
            # it asks a server, and not a model
            return ()
        if self._fallbacks is None:
            self._fallbacks = names[:MOST_FALLBACKS]
        return self._fallbacks

    def _fall_back(self, names: tuple[str, ...]) -> bool:
        """Send the request for the next model that may take this one's place; return whether there is one."""
        if not self._is_in_hand:
            return False
        context, forwarder = self._request.context, self._forwarder
        body = self._admitted.body
        while others := self._other_models(names):
            name, self._fallbacks = others[0], others[1:]
            try:
                admitted = forwarder.admission.admit(self._authorization, context.head.first, body, instead=name)
            except (ModelNotAllowed, ModelNotFound):
                continue
            if forwarder.accounting is not None:
                forwarder.accounting.withdraw(context)
            self._leave_attempt()
            # a key's alias may lead elsewhere
            context.fallback = admitted.model or name
            self._attempts, self._tried = 0, ()
            self._go(partial(self.admitted, admitted))
            return True
        return False

    def _read_refusal(self, response: UpstreamResponse) -> None:
        """Read why the server refused the request: another model may have room for a prompt that is too long."""
        head = response.head
        # the server is through with it, whatever becomes of its client
        self._leave_attempt()
        reading = read_at_most(response, MOST_REFUSAL)

        def read(body: bytes) -> None:
            if _TOO_LONG.search(body):
                before = self._keep_attempt(f"status_{head.status}", self._forwarder.clock.seconds(), head.status)
                if self._fall_back(self._group.context_fallbacks):
                    return
                self._request.context.attempts = before
            relay = self._relay
            self._over()
            assert relay is not None
            relay.answer_whole(head, body)

        def lost(error: GatewayError) -> bool:
            if self.failed(error):
                return True
            self._request.context.outcome = "upstream_failed"
            return False

        reading.addErrback(_cut_short)
        PendingStep(self._request, None, reading, lost).then(read)


def _both(one: Callable[[bytes], None], other: Callable[[bytes], None], data: bytes) -> None:
    one(data)
    other(data)


def _cut_short(failure: Failure) -> bytes:
    """Raise the error that a client gets if the body of an answer ends early."""
    if failure.check(ResponseFailed):
        raise cause_of_cut(failure)
    failure.raiseException()
    raise AssertionError


def _repeat(request: GatewayRequest, headers: RawHeaders) -> RawHeaders:
    """Return the headers of another attempt: with an id of its own, because vLLM must not meet one twice."""
    context = request.context
    request_id = request.site.ids.make(context.started)
    context.repeated_as = request_id.decode("ascii")
    return headers.replacing(REQUEST_ID, request_id)


def framing_of(body: bytes | Rope | RequestBody, head: Mapping[bytes, bytes]) -> tuple[bytes, bytes] | None:
    """Return the header that frames the body, or None for a request without a body."""
    if not isinstance(body, RequestBody):
        if body or b"content-length" in head or b"transfer-encoding" in head:
            return (b"Content-Length", b"%d" % len(body))
        return None
    if isinstance(body.length, int):
        return (b"Content-Length", b"%d" % body.length)
    return (b"Transfer-Encoding", b"chunked")
