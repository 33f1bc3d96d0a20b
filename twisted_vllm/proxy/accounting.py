"""Usage accounting of the pass-through: a reservation before the request, its settlement afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_vllm.api_routes import ModelPlace, Route, RouteClass
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import PREFLIGHT, Principal
from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.config.settings import ModelEntry, Server
from twisted_vllm.context import Authorization, RequestContext
from twisted_vllm.errors import EndUserBlocked, InvalidRequest, LedgerUnavailable, ModelUndetermined, RouteNotAllowed
from twisted_vllm.http.headers import RequestHead
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.proxy.admission import Admitted
from twisted_vllm.proxy.end_user_budgets import EndUserBudgets
from twisted_vllm.proxy.ledger import TEXT_LIMIT, UsageSink
from twisted_vllm.proxy.serving import Serving
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.interfaces import Limiter
from twisted_vllm.ratelimit.minute_counts import Later
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.upstreams.router import Destination
from twisted_vllm.usage.estimate import (
    BYTES_PER_TOKEN,
    TOKENS_PER_MEDIUM,
    estimate_audio,
    estimate_output,
    estimate_prompt,
)
from twisted_vllm.usage.generation_rate import MIN_TOKENS, GenerationRates, UncountedAnswer, generated_tokens
from twisted_vllm.usage.meter import UsageMeter
from twisted_vllm.usage.pricing import FREE, PriceTable, RoutePricing, cost_of, expected_cost
from twisted_vllm.usage.readers.stream_filter import Fingerprint
from twisted_vllm.usage.readers.uploaded_audio import measure_audio
from twisted_vllm.usage.records import NOTHING_USED, Usage
from twisted_vllm.usage.response_sizes import ResponseSizes

#: cached server fingerprints and route pricings
MAX_FINGERPRINTS = MAX_PRICINGS = 1_000
#: either is cached if model, path and method together have at most this many characters
MAX_KEY_LENGTH = 512

#: seconds between two requests of one pricing to learn from: the samples cover more than a moment of a busy server
LEARNING_INTERVAL = 0.05
#: a server that fails before it answered has done nothing within this time, in seconds
FAILED_AT_ONCE = 1.0


#: what requests with one pricing share: the model, the server, its name of the model, the path and the method
PricingKey = tuple[str, str, str, str, bytes]
#: what a request asks of its limits: whose they are, the model's name in them, the tokens, and picodollars
Demand = tuple[tuple[Limited, ...], str, int, int]


def _peer_of(context: RequestContext) -> str:
    return context.peer.host


class Accounting(RequestObserver):
    """Meters each request to a server and enforces its limits.

    Attributes:
        preflights: CORS preflights without a key that were admitted. They are counted here and nowhere else.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        limiter: Limiter,
        end_users: KeyIndex,
        prices: PriceTable,
        rows: UsageSink | None,
        fail_closed: bool = False,
        assumed_output_tokens: int = 1024,
        end_user_headers: Sequence[bytes] = (),
        requires_end_user: bool = False,
        uncounted: UncountedRequests | None = None,
        client_of: Callable[[RequestContext], str] = _peer_of,
        now: Callable[[], float] = time.time,
        budgets: EndUserBudgets | None = None,
    ) -> None:
        """Set up the accounting.

        Args:
            limiter: reserves and settles usage.
            end_users: looks up end users that have a record.
            prices: the prices of models.
            rows: the sink for ledger rows; None disables the ledger.
            fail_closed: refuse requests while ledger rows cannot be written.
            assumed_output_tokens: output tokens to reserve if the client sets no limit.
            end_user_headers: lower-case names of the headers that may name the end user; the first one present counts.
            requires_end_user: refuse requests to inference routes that name no end user.
            uncounted: limits the requests that the limiter does not count; None limits none.
            client_of: returns the address of a request's client.
            now: returns the time in Unix seconds.
            budgets: loads the budgets of end users without limits of their own; None if the limiter has them already.
        """
        self._budgets = budgets
        self._limiter = limiter
        self._end_users = end_users
        self._find_end_user = end_users.end_user
        self._rows = rows
        self._uncounted = UncountedRequests(None) if uncounted is None else uncounted
        self._client_of = client_of
        self._now = now
        self.preflights = 0
        self._fingerprints: BoundedCache[tuple[str, str, str], Fingerprint]
        self._fingerprints = BoundedCache(MAX_FINGERPRINTS, MAX_KEY_LENGTH)
        self._rates = GenerationRates()
        self._response_sizes = ResponseSizes(assumed_output_tokens)
        self._pricings: BoundedCache[PricingKey, RoutePricing] = BoundedCache(MAX_PRICINGS, MAX_KEY_LENGTH)
        self.reconfigure(
            prices=prices,
            fail_closed=fail_closed,
            assumed_output_tokens=assumed_output_tokens,
            end_user_headers=end_user_headers,
            requires_end_user=requires_end_user,
        )

    def reconfigure(
        self,
        *,
        prices: PriceTable,
        fail_closed: bool,
        assumed_output_tokens: int,
        end_user_headers: Sequence[bytes],
        requires_end_user: bool,
    ) -> None:
        """Use other settings from the next request on; the arguments are the constructor's.

        A request in flight costs what it cost when it began.
        """
        self._prices, self._prices_of = prices, prices.of
        self._fail_closed = fail_closed
        self._assumed = assumed_output_tokens
        self._response_sizes.reconfigure(assumed_output_tokens)
        self._end_user_headers = tuple(end_user_headers)
        self._header_hint = f"in the header {end_user_headers[0].decode('ascii')}, or " if end_user_headers else ""
        self._requires_end_user = requires_end_user
        self._pricings.clear()

    def use_prices(self, prices: PriceTable) -> None:
        """Use the prices of another model list. What was learned of models is kept, unless one costs something else."""
        # a model that was served without an entry, or by a pattern's, may have an entry of its own now
        added = prices.servers_beyond(self._prices)
        priced = {server for (_, server, *_), _ in self._pricings.newest_first()} if added else set()
        if not prices.keeps(self._prices) or added & priced:
            self._pricings.clear()
        self._prices, self._prices_of = prices, prices.of

    @property
    def pricings(self) -> int:
        """The number of cached pricings."""
        return len(self._pricings)

    @property
    def needs_end_user(self) -> bool:
        """Whether requests must be read for their end user: it is required, or one is limited or blocked."""
        return self._requires_end_user or self._end_users.has_end_users

    def open(
        self, context: RequestContext, authorization: Authorization, admitted: Admitted
    ) -> Deferred[Reservation] | None:
        """Start to meter a request, and reserve what it may use.

        Sets the context's end user and meter, and its reservation if the limiter decides at once.

        Args:
            context: the request.
            authorization: the authorization of its head.
            admitted: the admitted request.

        Returns:
            None, or a Deferred of the reservation if the limiter decides later. It fails with the errors below.

        Raises:
            InvalidRequest: the request must name its end user and does not.
            EndUserBlocked: an administrator blocked the end user.
            RouteNotAllowed: a limit applies that cannot be counted on this route.
            RateLimitExceeded, BudgetExceeded: a limit or a budget is exhausted, that of uncounted requests included.
            LedgerUnavailable: ledger rows cannot be written.
            ModelUndetermined: a limit depends on the request's model, tokens or cost, and those are unknown.
        """
        if authorization.principal is PREFLIGHT:
            # A stranger sends it: it must not spend or reveal what an end user may use, nor write to the ledger.
            counting = self._uncounted.count_preflight(self._client_of(context), self._now())
            if counting is None:
                self.preflights += 1
            return _deferred(counting, self._admit_preflight)
        if authorization.uncounted:
            counting = self._uncounted.count(authorization.principal, self._now())
            if counting is not None:
                # the reservation is in the context already if it was decided at once
                return _deferred(counting, lambda: self._open(context, authorization, admitted) or context.reservation)
        return self._open(context, authorization, admitted)

    def _admit_preflight(self) -> None:
        self.preflights += 1

    def _open(
        self, context: RequestContext, authorization: Authorization, admitted: Admitted
    ) -> Deferred[Reservation] | None:
        if self._fail_closed:
            self._check_ledger()
        facts = admitted.facts
        context.said = facts.said
        head = context.head
        end_user = authorization.principal.end_user_id or self._end_user_of(head) or facts.end_user
        limited = authorization.principal.limited
        if end_user is not None or self._requires_end_user:
            if end_user is not None:
                context.end_user = end_user = end_user[:TEXT_LIMIT]
            limited = self._limited_of(authorization, end_user)
        serving = admitted.serving
        if self._rows is None and not limited and not serving.group.counts_tokens:
            return None
        route = authorization.route
        # the server is chosen later: until then, the dearest counts
        pricing = self._pricing_at(serving.group.dearest, serving, route, head.method)
        prompt, audio = 0, None
        if pricing.takes_model:
            body = admitted.body
            if pricing.audio_uploads:
                audio = measure_audio(head.first)
            if audio is None:
                if body is None:
                    prompt = (head.length or 0) // BYTES_PER_TOKEN
                else:
                    text = body.rope() if isinstance(body, HeldBody) else body
                    prompt = estimate_prompt(text, facts.repeated_bytes, tokens=route.row.fields.tokens)
            if admitted.previous_id is not None:
                # its prompt begins with that of the response, and its answer
                prompt += self._response_sizes.of(admitted.previous_id)
        # do not keep `admitted` in the meter: it holds the body
        context.meter = meter = UsageMeter(
            pricing,
            prompt,
            facts.choices,
            admitted.usage_injected,
            facts.max_tokens,
            facts.min_tokens,
            facts.stream_interval,
        )
        if context.background is not None:
            context.background.prompt_tokens = prompt
        if audio is not None:
            # the size of an upload says nothing about tokens
            meter.audio, prompt = audio, TOKENS_PER_MEDIUM
        if admitted.usage_injected:
            meter.fingerprint = self._fingerprint(serving.group.dearest.server, admitted.model, route.path)
        if not limited or authorization.uncounted:
            # to look at a response or to cancel it must work while the response takes the last place
            return None
        audio_ms = 0 if audio is None else estimate_audio(head.length)
        demand = self._demand(route, admitted, limited, pricing, prompt, audio_ms)
        loading = self._load_budget(end_user)
        if loading is not None:
            admit = self._limiter.admit
            return loading.addCallback(lambda _: admit(*demand, self._now()))
        reserved = self._limiter.admit(*demand, self._now())
        if isinstance(reserved, Reservation):
            context.reservation = reserved
            return None
        return reserved

    def _limited_of(self, authorization: Authorization, end_user: str | None) -> tuple[Limited, ...]:
        """Return whose limits apply to a request of an end user, or of none.

        Raises:
            InvalidRequest: the request must name its end user and does not.
            EndUserBlocked: an administrator blocked it.
        """
        limited = authorization.principal.limited
        if end_user is not None:
            return self._with_end_user(limited, end_user)
        if self._requires_end_user and authorization.route.route_class is RouteClass.INFERENCE:
            raise InvalidRequest(
                "The operator requires the end user of each request, and this one names none: send it "
                f'{self._header_hint}in the body as "user".',
                param="user",
            )
        return limited

    def _demand(
        self,
        route: Route,
        admitted: Admitted,
        limited: tuple[Limited, ...],
        pricing: RoutePricing,
        prompt: int,
        audio_ms: int,
    ) -> Demand:
        """Return what a request asks of its limits.

        Raises:
            RouteNotAllowed, ModelUndetermined: as from `open`.
        """
        facts, serving = admitted.facts, admitted.serving
        if route.takes_model:
            self._check_known(admitted, limited)
        elif route.row.model is ModelPlace.EVENT and any(each.allowance.counts_usage for each in limited):
            raise RouteNotAllowed(
                "Tokens, money or models are limited here, and vLLM does not report what a WebSocket uses. Use a key "
                "without such limits."
            )
        output = 0
        if route.row.generates:
            output = estimate_output(facts.max_tokens, facts.min_tokens, facts.choices, self._assumed)
        cost = expected_cost(prompt, output, pricing.prices, audio_ms)
        model = self._limited_name(serving, limited) if serving.asked else serving.model
        if any(each.allowance.model_budgets for each in limited):
            limited = (*limited, *self._end_users.model_budgets(limited, serving.model))
        return limited, model, prompt + output, cost

    def demand_of(self, authorization: Authorization, admitted: Admitted, method: bytes) -> Demand | None:
        """Return what a small request would ask of its limits; None if no limit applies. Nothing is counted.

        Raises:
            InvalidRequest, EndUserBlocked, LedgerUnavailable, RouteNotAllowed, ModelUndetermined: as from `open`.
        """
        if self._fail_closed:
            self._check_ledger()
        facts, route = admitted.facts, authorization.route
        end_user = authorization.principal.end_user_id or facts.end_user
        limited = self._limited_of(authorization, None if end_user is None else end_user[:TEXT_LIMIT])
        if not limited or authorization.uncounted:
            return None
        pricing = self._pricing_at(admitted.serving.group.dearest, admitted.serving, route, method)
        body = admitted.body
        prompt = 0
        if pricing.takes_model and isinstance(body, bytes):
            prompt = estimate_prompt(body, facts.repeated_bytes, tokens=route.row.fields.tokens)
        return self._demand(route, admitted, limited, pricing, prompt, 0)

    def would_admit(self, demand: Demand) -> Deferred[None] | None:
        """Decide about a demand as `open` does, and leave nothing counted.

        Raises:
            RateLimitExceeded, BudgetExceeded, LimitsUnavailable: as from `open`; or what is returned fails with them.
        """
        return self._limiter.would_admit(*demand, self._now())

    def count_read(self, principal: Principal) -> Deferred[None] | None:
        """Count a request that the gateway answers itself.

        Returns:
            None, or what fails with the error if it is decided later.

        Raises:
            RateLimitExceeded: it is one too many for its key.
        """
        return _deferred(self._uncounted.count(principal, self._now()))

    def placed(
        self,
        context: RequestContext,
        authorization: Authorization,
        admitted: Admitted,
        destination: Destination,
        response_id: str,
    ) -> None:
        """Meter a request as its destination is priced.

        Args:
            context: the request.
            authorization: the authorization of its head.
            admitted: the admitted request.
            destination: what serves it.
            response_id: the id of the response, if the gateway chose it; else empty.
        """
        meter = context.meter
        if meter is None:
            return
        meter.response_id = response_id
        serving = admitted.serving
        if destination is serving.group.lone:
            return
        route = authorization.route
        meter.pricing = self._pricing_at(destination, serving, route, context.head.method)
        if admitted.usage_injected:
            meter.fingerprint = self._fingerprint(destination.server, admitted.model, route.path)

    def placed_everywhere(self, context: RequestContext, authorization: Authorization) -> None:
        """Meter a request that goes to several servers: its ledger row names none."""
        if context.meter is not None:
            route, method = authorization.route, context.head.method
            key = ("", "", "", route.path, method)
            context.meter.pricing = self._pricings.get(key) or self._new_pricing(key, route, None)

    def expected_tokens(self, context: RequestContext) -> int:
        """Return the estimated tokens of a request and the most that it may generate; 0 if it is not metered."""
        if context.reservation is not None:
            return context.reservation.tokens
        meter = context.meter
        if meter is None:
            return 0
        prompt = meter.prompt_tokens if meter.audio is None else TOKENS_PER_MEDIUM
        return prompt + (self._expected_output(meter) if meter.pricing.generates else 0)

    def withdraw(self, context: RequestContext) -> None:
        """Give back what a request reserved: another model is asked in its place."""
        reservation, context.reservation = context.reservation, None
        context.meter = None
        if reservation is not None:
            self._limiter.settle(reservation, 0, 0, self._now(), sent=False)

    def check(self, context: RequestContext, authorization: Authorization) -> None:
        """Refuse a request by its head that `open` would refuse whatever its body is. Reserves nothing.

        Raises:
            EndUserBlocked: an administrator blocked the end user that a header names.
            RateLimitExceeded, BudgetExceeded: a limit or a budget is exhausted.
            LimitsUnavailable: the limits cannot be counted.
            LedgerUnavailable: ledger rows cannot be written.
        """
        if authorization.principal is PREFLIGHT:
            return
        if self._fail_closed:
            self._check_ledger()
        limited = authorization.principal.limited
        end_user = self._end_user_of(context.head)
        if end_user is not None:
            context.end_user = end_user = end_user[:TEXT_LIMIT]
            limited = self._with_end_user(limited, end_user)
        if limited and not authorization.uncounted:
            self._limiter.check(limited, self._now())

    def finished(self, context: RequestContext) -> None:
        """Determine what a request used and what that costs, and settle its reservation."""
        meter = context.meter
        if meter is None:
            return
        background = context.background
        if background is not None and background.left_running(context):
            # `BackgroundResponses` settles the reservation later
            self._keep_size(meter, meter.prompt_tokens, self._expected_output(meter))
            return
        pricing = meter.pricing
        try:
            # a server starts to work once it has the whole body
            if context.sent and (meter.status or (context.body_complete and context.sent_at is not None)):
                if context.head.length is None and not (meter.prompt_tokens or meter.audio):
                    # the size of a chunked body is known only now
                    meter.prompt_tokens = context.bytes_in // BYTES_PER_TOKEN if pricing.takes_model else 0
                try:
                    usage = meter.usage(context.outcome)
                    if pricing.generates:
                        if usage.estimated:
                            usage = self._with_generated(context, meter, usage)
                        elif (
                            usage.completion_tokens >= MIN_TOKENS
                            and meter.choices == 1
                            and not 0.0 <= context.ended - pricing.learned_at < LEARNING_INTERVAL
                        ):
                            self._learn(context, meter, usage)
                    context.usage = usage
                    if meter.response_id:
                        self._keep_size(meter, usage.prompt_tokens, usage.completion_tokens)
                except Exception:
                    # a response that breaks its reader must cost neither the ledger row nor the client's response
                    request_id = context.request_id.decode("ascii")
                    self._log.failure("The usage of {request_id} could not be read", request_id=request_id)
                    usage = context.usage
                # an error costs nothing
                if pricing.prices is not FREE and (usage.estimated or 200 <= meter.status < 300):
                    context.cost = cost_of(usage, pricing.prices)
        finally:
            if context.reservation is not None:
                tokens = context.usage.prompt_tokens + context.usage.completion_tokens
                self._limiter.settle(context.reservation, tokens, context.cost, self._now(), sent=context.sent)

    def _check_ledger(self) -> None:
        if self._rows is not None and not self._rows.healthy:
            raise LedgerUnavailable(
                "The gateway cannot write down what requests use at present, and serves none until it can.",
                retry_after=5,
            )

    def _end_user_of(self, head: RequestHead) -> str | None:
        """Return the end user that a header names, or None."""
        for name in self._end_user_headers:
            value = head.value(name)
            if value is not None:
                return value.decode("latin-1").strip() or None
        return None

    def _with_end_user(self, limited: tuple[Limited, ...], end_user: str) -> tuple[Limited, ...]:
        """Return whose limits apply, with an end user's.

        Raises:
            EndUserBlocked: an administrator blocked it.
        """
        record = self._find_end_user(end_user)
        if record is None:
            return limited
        if record.blocked:
            raise EndUserBlocked("This end user was blocked. Ask an administrator to unblock it.")
        return limited if record.limited.allowance.is_unlimited else (*limited, record.limited)

    def _load_budget(self, end_user: str | None) -> Deferred[None] | None:
        """Have the budget of an end user in the limiter; None if it is there, or there is none."""
        if end_user is None or self._budgets is None or not self._end_users.limits_strangers:
            return None
        return None if self._end_users.has_record(end_user) else self._budgets.load(end_user)

    @staticmethod
    def _limited_name(serving: Serving, limited: Sequence[Limited]) -> str:
        """Return the name by which a request counts: the entry's, or the caller's if only that one has a limit."""
        allowances = [each.allowance for each in limited]
        if any(each.limits_model(serving.model) for each in allowances):
            return serving.model
        return serving.asked if any(each.limits_model(serving.asked) for each in allowances) else serving.model

    @staticmethod
    def _check_known(admitted: Admitted, limited: Sequence[Limited]) -> None:
        """Refuse a request if a limit depends on something that is not known of it."""
        allowances = [each.allowance for each in limited]
        if admitted.unread is not None and any(each.counts_tokens for each in allowances):
            raise admitted.unread
        if not admitted.serving.priced and any(
            each.max_budget is not None or each.model_budgets for each in allowances
        ):
            raise ModelUndetermined(
                "The budget is limited here, the models of this server have different prices, and the request does not "
                'say which serves it: send the model in the body as "model".',
                param="model",
            )
        if not admitted.model and any(each.counts_models for each in allowances):
            raise ModelUndetermined(
                "How much of certain models may be used is limited here, and the gateway cannot read from this request "
                'which it asks for: send it in the body as "model".',
                param="model",
            )

    def _pricing_at(self, destination: Destination, serving: Serving, route: Route, method: bytes) -> RoutePricing:
        """Return the pricing of all requests with one model, server, route and method."""
        key = (serving.model, destination.server.name, serving.name_at(destination), route.path, method)
        return self._pricings.get(key) or self._new_pricing(key, route, destination.entry)

    def _new_pricing(self, key: PricingKey, route: Route, entry: ModelEntry | None) -> RoutePricing:
        pricing = RoutePricing(route, self._prices_of(entry) if route.takes_model else FREE)
        model, _, name, path, method = key
        self._pricings.keep(key, pricing, len(model) + len(name) + len(path) + len(method))
        return pricing

    def _learn(self, context: RequestContext, meter: UsageMeter, usage: Usage) -> None:
        """Learn from a finished request with one choice and enough tokens how fast its server generates."""
        sent = context.sent_at
        if sent is None or context.outcome != "completed":
            return
        pricing = meter.pricing
        rate = pricing.rate
        if rate is None:
            server = "" if context.server is None else context.server.name
            rate = pricing.rate = self._rates.to_learn(server, context.model)
        pricing.learned_at = context.ended
        if not meter.is_stream:
            # a whole answer was generated when it began; its client may read it slowly
            ended = meter.began or context.ended
            rate.learn(usage.completion_tokens, ended - sent, ended, usage.prompt_tokens)
        elif not meter.paused:
            ended, waited = context.ended, meter.began - sent if meter.began else 0.0
            # events of an interval that the client requested say nothing about others
            events = meter.events if meter.interval == 1 else 0
            rate.learn(usage.completion_tokens, ended - sent, ended, usage.prompt_tokens, waited, events)

    def _with_generated(self, context: RequestContext, meter: UsageMeter, usage: Usage) -> Usage:
        """Return an estimated usage with the tokens that were probably generated."""
        complete, sent = context.outcome == "completed", context.sent_at
        if sent is None or (complete and not meter.is_stream):
            return usage
        if not meter.status and context.outcome == "upstream_failed" and context.ended - sent < FAILED_AT_ONCE:
            return NOTHING_USED
        rate = meter.pricing.rate or self._rates.of(
            "" if context.server is None else context.server.name, context.model
        )
        answer = UncountedAnswer(
            meter.choices,
            self._expected_output(meter),
            meter.max_tokens is not None,
            usage.prompt_tokens,
            sent,
            # nothing is generated after a whole answer began
            (not meter.is_stream and meter.began) or context.ended,
            meter.events if meter.is_stream else usage.completion_tokens,
            meter.interval,
            meter.paused,
            0 if meter.is_stream or not meter.status else meter.size or context.bytes_out,
            complete,
            meter.text_size(context.bytes_out) if meter.is_stream else 0,
            meter.reported,
        )
        tokens = generated_tokens(answer, rate)
        return msgspec.structs.replace(usage, completion_tokens=tokens, total_tokens=usage.prompt_tokens + tokens)

    def _expected_output(self, meter: UsageMeter) -> int:
        return estimate_output(meter.max_tokens, meter.min_tokens, meter.choices, self._assumed)

    def _keep_size(self, meter: UsageMeter, prompt: int, output: int) -> None:
        """Remember the tokens of a response that the server may have stored."""
        if meter.response_id and prompt:
            self._response_sizes.keep(meter.response_id, prompt + output)

    def _fingerprint(self, server: Server, model: str, route: str) -> Fingerprint:
        # not every route's responses have one
        key = (server.name, model, route)
        found = self._fingerprints.get(key)
        if found is None:
            found = Fingerprint()
            self._fingerprints.keep(key, found, len(model) + len(route))
        return found


def _deferred(counting: Later[None] | None, then: Callable[[], Any] = lambda: None) -> Deferred[Any] | None:
    """Return the result of a function that is called once a request is counted; None if that was done at once."""
    if counting is None:
        return None
    # what counts later is Twisted's
    assert isinstance(counting, Deferred)
    return counting.addCallback(lambda _: then())
