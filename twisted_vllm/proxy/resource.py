"""The resource of vLLM's routes, which connects admission, forwarding and the relay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from urllib.parse import parse_qsl

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.steering_headers import SERVER
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.config.settings import Limits, Server
from twisted_vllm.context import Authorization, RequestContext
from twisted_vllm.errors import (
    ADDRESS_NOT_ALLOWED,
    PRIVATE_RESPONSE,
    AddressNotAllowed,
    Draining,
    GatewayError,
    MissingApiKey,
    NotFound,
)
from twisted_vllm.field_policy.forms import FormFields
from twisted_vllm.http.headers import is_form, is_json
from twisted_vllm.http.net.bounded_turns import Cooperate, Jobs
from twisted_vllm.http.server.body_room import owner_of
from twisted_vllm.http.server.held_bodies import SMALL_BODY, UNCOUNTED
from twisted_vllm.http.server.request import GatewayRequest, IStreamingResource
from twisted_vllm.http.web_pages import NO_WEB_PAGES, WebPages
from twisted_vllm.mounts import Mounts
from twisted_vllm.proxy.accounting import Accounting
from twisted_vllm.proxy.admission import Admission, ResponseUnlocated
from twisted_vllm.proxy.authorization_cache import AuthorizationCache, CachedAuthorization
from twisted_vllm.proxy.body_collector import BodyCollector, takes_long
from twisted_vllm.proxy.fan_out_work import FanOut
from twisted_vllm.proxy.form_body import FormBody, streams
from twisted_vllm.proxy.form_files import FormFiles
from twisted_vllm.proxy.form_spool import MOST_IN_MEMORY, InThread
from twisted_vllm.proxy.forwarded import EVERYBODY, ClientAddresses
from twisted_vllm.proxy.forwarding import Forwarder
from twisted_vllm.proxy.max_forwards import COUNTED_METHODS, MAX_FORWARDS, is_last, own_answer
from twisted_vllm.proxy.model_listing import ModelListing
from twisted_vllm.proxy.pending_step import PendingStep
from twisted_vllm.proxy.relay import RequestBody
from twisted_vllm.proxy.serving import BaseModelUnknown
from twisted_vllm.proxy.upstream_headers import dropped_from

#: finds out about a caller who is about to be refused, as `Identifier.before_refusal`
BeforeRefusal = Callable[[Mapping[bytes, bytes], GatewayError, str], Deferred[None] | None]

#: a buffered body up to this size in bytes is read for its model even if only the log needs it
PEEK_LIMIT = 65_536

#: the most parameters of a request about models; more are ignored
MAX_PARAMETERS = 100
#: the headers of the gateway's own lists
JSON_ANSWER = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"), *PRIVATE_RESPONSE)


class _NotYetKnown(Exception):
    """The caller may be known in a moment.

    Attributes:
        waiting: fires then, and never fails.
    """

    def __init__(self, waiting: Deferred[None]) -> None:
        super().__init__()
        self.waiting = waiting


class _RefusedLater(Exception):
    """The caller is refused; the error for the client is known in a moment.

    Attributes:
        waiting: has it.
    """

    def __init__(self, waiting: Deferred[GatewayError]) -> None:
        super().__init__()
        self.waiting = waiting


@implementer(IResource, IStreamingResource)
class PassThroughResource:
    """Forwards requests to vLLM servers."""

    isLeaf = True

    def __init__(
        self,
        *,
        admission: Admission,
        forwarder: Forwarder,
        limits: Limits,
        addresses: ClientAddresses = EVERYBODY,
        in_thread: InThread,
        form_files: FormFiles | None = None,
        cooperate: Cooperate,
        ask_models: Callable[[Server], Deferred[None]],
        locate: Callable[[str], Deferred[Server | None]] | None = None,
        throttle: AuthenticationThrottle | None = None,
        before_refusal: BeforeRefusal | None = None,
        web_pages: WebPages = NO_WEB_PAGES,
        accounting: Accounting | None = None,
        mounts: Mounts | None = None,
        listing: ModelListing | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make the resource.

        Args:
            admission: authorizes and routes requests.
            forwarder: sends requests to servers.
            limits: the limits of bodies.
            addresses: knows which client a request comes from, and whether it is served.
            in_thread: runs a function in another thread, for forms that are buffered in a file.
            form_files: bounds these files; None sets no bounds.
            cooperate: runs an iterator in steps, for large bodies that are held.
            ask_models: asks a server for its base model, for the admission.
            locate: asks all servers for a stored response, by its id; None if the admission knows no places.
            throttle: slows down guessing of keys.
            before_refusal: finds out about a caller who is about to be refused; None refuses at once.
            web_pages: decides about requests of web pages.
            accounting: meters and limits requests; None does neither.
            mounts: decides what a path means to a server; None for the settings' defaults.
            listing: lists the models of all servers; None forwards requests for them.
            now: the time in Unix seconds.
        """
        self._admission = admission
        self._forwarder = forwarder
        self._addresses = addresses
        self._in_thread = in_thread
        self._form_files = FormFiles() if form_files is None else form_files
        self._cooperate = cooperate
        self._jobs = Jobs(cooperate)
        self._ask_models = ask_models
        self._locate = locate
        self._throttle = AuthenticationThrottle(None) if throttle is None else throttle
        self._before_refusal = before_refusal
        self._web_pages = web_pages
        self._accounting = accounting
        self._mounts = Mounts() if mounts is None else mounts
        self._listing = listing
        self._now = now
        self._cache = AuthorizationCache(admission)
        self.reconfigure(limits)

    def reconfigure(self, limits: Limits) -> None:
        """Use other limits from now on."""
        self._limits = limits
        self._small = min(limits.max_held_body_bytes, SMALL_BODY)

    def getChildWithDefault(self, name: bytes, request: GatewayRequest) -> IResource:
        """Return itself: every path below is its own."""
        return self

    def putChild(self, path: bytes, child: IResource) -> None:
        """Refuse: everything below is vLLM's."""
        raise TypeError("these paths belong to the server behind them")

    def render(self, request: GatewayRequest) -> int:
        """Start to process `request`; its body may still be arriving."""
        try:
            self._enter(request)
        except GatewayError as error:
            request.answer(error)
        return NOT_DONE_YET

    def _enter(self, request: GatewayRequest) -> None:
        if request.site.draining and not request.is_awaited:
            raise Draining("The gateway is shutting down; send the request again.", retry_after=1)
        try:
            cached = self._authorize(request)
        except _NotYetKnown as error:
            self._identify_later(request, error.waiting)
        except _RefusedLater as error:
            self._refuse_later(request, error.waiting)
        else:
            self._authorized(request, cached)

    def _identify_later(self, request: GatewayRequest, waiting: Deferred[None]) -> None:
        """Go on once more is known of the caller; meanwhile the body is not read."""
        request.pause_body("caller")

        def proceed(_: None) -> None:
            request.resume_body("caller")
            try:
                cached = self._authorize(request, for_good=True)
            except _RefusedLater as error:
                self._refuse_later(request, error.waiting)
            else:
                self._authorized(request, cached)

        PendingStep(request, None, waiting).then(proceed)

    def _refuse_later(self, request: GatewayRequest, waiting: Deferred[GatewayError]) -> None:
        """Refuse a caller once the failure is counted; meanwhile the body is not read."""
        request.pause_body("caller")

        def refuse(error: GatewayError) -> None:
            request.resume_body("caller")
            raise error

        PendingStep(request, None, waiting).then(refuse)

    def _authorized(self, request: GatewayRequest, cached: CachedAuthorization | None) -> None:
        context = request.context
        authorization = context.authorization
        assert authorization is not None
        head = context.head
        if cached is None and head.method in COUNTED_METHODS and is_last(head):
            request.relay_head(own_answer(authorization.route.row))
            request.relay_body(b"", True)
            return
        if authorization.model_id is not None and self._list(request, authorization, authorization.model_id):
            return
        most = self._limits.max_held_body_bytes
        received, complete = request.body_received, request.body_complete
        if complete and received <= UNCOUNTED and (received <= most or not authorization.needs_body):
            self._take(request, request.take_body(), cached)
        elif complete and received <= (self._small if authorization.needs_body else PEEK_LIMIT):
            self._check_limits(request, authorization)
            request.await_room(most, lambda: self._take(request, request.take_body(), cached))
        elif self._admission.must_hold(authorization, head):
            self._check_limits(request, authorization)
            if streams(request) and not authorization.route.fans_out:
                self._hold_form(request)
            else:
                self._hold(request, most)
        elif self._wants_body(context, authorization):
            self._check_limits(request, authorization)
            self._hold(request, most)
        else:
            self._admit(request, None, None)

    def _list(self, request: GatewayRequest, authorization: Authorization, model_id: str) -> bool:
        """Answer a request about models; return whether it is not the server's own answer."""
        listing, principal = self._listing, authorization.principal
        headers = request.context.head.first
        if listing is None:
            return False
        steered = SERVER in headers and not principal.restricts_models
        if not model_id and (steered or listing.forwards(principal)):
            return False
        counting = None if self._accounting is None else self._accounting.count_read(principal)
        if counting is None:
            self._answer_list(request, listing, principal, model_id)
        else:
            counted = PendingStep(request, None, counting)
            counted.then(lambda _: self._answer_list(request, listing, principal, model_id))
        return True

    @staticmethod
    def _answer_list(request: GatewayRequest, listing: ModelListing, principal: Principal, model_id: str) -> None:
        headers = request.context.head.first
        query: dict[str, str] = {}
        with suppress(ValueError):
            query = dict(parse_qsl(request.uri.partition(b"?")[2].decode("latin-1"), max_num_fields=MAX_PARAMETERS))
        if model_id:
            answer = listing.retrieve(principal, model_id, query, headers)
        else:
            answer = listing.listed(principal, query, headers)
        PendingStep(request, None, answer).then(lambda body: request.respond(200, list(JSON_ANSWER), body))

    def _wants_body(self, context: RequestContext, authorization: Authorization) -> bool:
        """Return whether to hold a body that decides nothing about the request's server."""
        head, accounting = context.head, self._accounting
        if not is_json(head.first):
            return False
        if authorization.wants_body and head.length is not None and head.length <= self._limits.max_held_body_bytes:
            # optional to read: it streams if it is too large
            return True
        # it may name an end user who is limited or blocked
        return authorization.route.takes_model and accounting is not None and accounting.needs_end_user

    def _check_limits(self, request: GatewayRequest, authorization: Authorization) -> None:
        """Refuse a request whose limits are used up before its body costs anything."""
        if self._accounting is not None:
            self._accounting.check(request.context, authorization)

    def _authorize(self, request: GatewayRequest, *, for_good: bool = False) -> CachedAuthorization | None:
        """Authorize the request by its head; return the cache entry, or None if the head is not cached.

        Raises:
            _NotYetKnown: the caller may be known in a moment; never with `for_good`.
        """
        context = request.context
        head = context.head
        template = head.template
        if template is not None:
            caller = self._cache.caller(template, head.credential, self._now())
            cached = None if caller is None else self._cache.find(template, caller)
            if caller is not None and cached is not None:
                if self._addresses.restricts and not self._addresses.allows(context):
                    raise AddressNotAllowed(ADDRESS_NOT_ALLOWED)
                context.authorization = cached.of(caller)
                context.principal = caller.principal
                return cached
        if not self._addresses.allows(context):
            raise AddressNotAllowed(ADDRESS_NOT_ALLOWED)
        self._web_pages.check(head.first)
        principal = context.principal = self._identify(context, for_good)
        path, mark, query = request.uri.partition(b"?")
        mount = self._mounts.find(path)
        if mount is None:
            # it was closed while the request waited
            raise NotFound("The gateway has no such route. vLLM's are below /vllm.")
        authorization = self._admission.authorize(principal, request.method, mount.path + mark + query, mount.model)
        context.authorization = authorization
        if template is None or MAX_FORWARDS in head.first:
            return None
        return self._cache.keep(template, head.credential, authorization)

    def _identify(self, context: RequestContext, for_good: bool) -> Principal:
        now = self._now()
        head = context.head
        try:
            return self._admission.identify(head.first, now, head.method, head.length != 0)
        except GatewayError as error:
            refusal = error
        address = self._addresses.of(context)
        if not for_good and self._before_refusal is not None:
            waiting = self._before_refusal(head.first, refusal, address)
            if waiting is not None:
                raise _NotYetKnown(waiting)
        if not isinstance(refusal, MissingApiKey):
            # no guess: the token is valid, or it is not known whether it is
            raise refusal
        counted = self._throttle.record_failure(refusal, address, now)
        if isinstance(counted, GatewayError):
            raise counted
        # what counts later is Twisted's
        assert isinstance(counted, Deferred)
        raise _RefusedLater(counted)

    def _take(self, request: GatewayRequest, body: bytes, cached: CachedAuthorization | None = None) -> None:
        """Take a small body that is complete."""
        if takes_long(body):
            self._admit_later(request, body, cached)
        else:
            self._collected(request, body, cached)

    def _admit_later(self, request: GatewayRequest, body: bytes, cached: CachedAuthorization | None) -> None:
        """Admit a request in a step of its own: many such bodies may be complete in the same turn."""
        turn: Deferred[None] = Deferred()

        def step() -> Iterator[None]:
            turn.callback(None)
            yield

        PendingStep(request, body, turn).then(lambda _: self._collected(request, body, cached))
        self._jobs.run(owner_of(request.context), step())

    def _hold(self, request: GatewayRequest, most: int) -> None:
        """Collect a body of at most `most` bytes, then admit the request."""
        head, authorization = request.head, request.context.authorization
        assert authorization is not None
        if is_form(head.first) or (head.length is not None and head.length <= self._small):
            request.collect_body(most, lambda body: self._take(request, body))
            return
        BodyCollector(
            request,
            most,
            lambda body: self._collected(request, body),
            work=partial(self._jobs.run, owner_of(request.context)),
            is_json=authorization.reads and is_json(head.first),
            policy=authorization.fields,
        ).start()

    def _hold_form(self, request: GatewayRequest) -> None:
        principal, authorization = request.context.principal, request.context.authorization
        assert principal is not None
        assert authorization is not None
        form = FormBody(
            request,
            dropped_from(principal),
            in_thread=self._in_thread,
            limit=self._limits.max_held_body_bytes,
            files=self._form_files,
            on_model=lambda form: self._collected(request, form),
            fields=None if authorization.fields is None else FormFields(authorization.fields),
        )
        request.await_part_room(MOST_IN_MEMORY, form.hold_for_model)

    def _collected(
        self, request: GatewayRequest, body: bytes | HeldBody | FormBody, cached: CachedAuthorization | None = None
    ) -> None:
        try:
            self._admit(request, body, cached)
        except GatewayError as error:
            request.answer(error)
        except Exception:
            # the body may arrive long after `render`, when nothing else would handle an internal error
            request.processingFailed(Failure())

    def _admit(
        self, request: GatewayRequest, held: bytes | HeldBody | FormBody | None, cached: CachedAuthorization | None
    ) -> None:
        context = request.context
        authorization = context.authorization
        assert authorization is not None
        streamed: RequestBody | None = None
        if isinstance(held, FormBody):
            admitted = self._admission.admit_form(authorization, context.head.first, held.model, held.fault)
            streamed = held
        else:
            try:
                admitted = self._admission.admit(authorization, context.head.first, held)
            except BaseModelUnknown as error:
                self._wait_and_admit(request, held, cached, self._ask_models(error.server))
                return
            except ResponseUnlocated as error:
                self._locate_and_admit(request, held, cached, error.response_id)
                return
            if admitted.servers:
                FanOut(self._forwarder, request, authorization, None, None).admitted(admitted)
                return
            if held is None:
                streamed = RequestBody(request, dropped_from(authorization.principal))
        self._forwarder.forward(request, authorization, admitted, streamed, cached)

    def _wait_and_admit(
        self,
        request: GatewayRequest,
        held: bytes | HeldBody | None,
        cached: CachedAuthorization | None,
        waiting: Deferred[None],
    ) -> None:
        """Admit a request once servers have told what decides; a body that streams waits unread."""
        if held is None:
            request.pause_body()

        def admit(_: None) -> None:
            if held is None:
                request.resume_body()
            self._admit(request, held, cached)

        PendingStep(request, held, waiting).then(admit)

    def _locate_and_admit(
        self,
        request: GatewayRequest,
        held: bytes | HeldBody | None,
        cached: CachedAuthorization | None,
        response_id: str,
    ) -> None:
        """Admit a request once it is known which server has the stored response that it names."""
        context = request.context
        assert self._locate is not None

        def found(server: Server | None) -> None:
            assert context.authorization is not None
            context.authorization = msgspec.structs.replace(context.authorization, located=(response_id, server))

        self._wait_and_admit(request, held, cached, self._locate(response_id).addCallback(found))
