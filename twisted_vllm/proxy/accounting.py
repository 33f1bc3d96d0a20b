"""Accounting of the pass-through: reserves what a request may use, and settles what it has used."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_vllm.api_routes import Route, RouteClass
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.context import Authorization, RequestContext
from twisted_vllm.errors import EndUserBlocked, LedgerUnavailable, ModelUndetermined
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.proxy.admission import Admitted
from twisted_vllm.proxy.ledger import UsageSink
from twisted_vllm.ratelimit.interfaces import Limiter
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.usage.estimate import BYTES_PER_TOKEN, TOKENS_PER_MEDIUM, estimate_prompt, estimate_total
from twisted_vllm.usage.meter import UsageMeter
from twisted_vllm.usage.pricing import FREE, PriceTable, RoutePricing, cost_of, expected_cost
from twisted_vllm.usage.readers.stream_filter import Fingerprint
from twisted_vllm.usage.readers.uploaded_audio import audio_uploaded

#: fingerprints of servers, and pricings, that are kept
MOST_FINGERPRINTS = MOST_PRICINGS = 1_000
#: characters of model, path and method up to which a pricing is kept
LONGEST_KEY = 512

#: characters of an end user's name that are kept
TEXT_LIMIT = 255


class Accounting(RequestObserver):
    """Measures and limits each request that goes to a server."""

    _log = Logger()

    def __init__(
        self,
        *,
        limiter: Limiter,
        end_users: KeyIndex,
        prices: PriceTable,
        rows: UsageSink | None,
        refuses_unwritten: bool = False,
        assumed_output_tokens: int = 1024,
        end_user_headers: Sequence[bytes] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """Bind what measures and limits.

        Args:
            limiter: counts.
            end_users: the end users that have limits of their own, or are blocked.
            prices: what models cost.
            rows: where the ledger's rows go; None keeps none.
            refuses_unwritten: whether a request is refused whose row cannot be written.
            assumed_output_tokens: tokens that a response is assumed to have at most, where the client does not say.
            end_user_headers: lower-case names of the headers that name an end user, the first of which counts.
            now: the time in Unix seconds.
        """
        self._limiter = limiter
        self._end_users = end_users
        self._find_end_user = end_users.end_user
        self._prices_of = prices.of
        self._rows = rows
        self._refuses_unwritten = refuses_unwritten
        self._assumed = assumed_output_tokens
        self._end_user_headers = tuple(end_user_headers)
        self._now = now
        self._fingerprints: dict[tuple[str, str, str], Fingerprint] = {}
        self._pricings: dict[tuple[str, str, str, bytes], RoutePricing] = {}

    @property
    def pricings(self) -> int:
        """The number of pricings that are kept."""
        return len(self._pricings)

    @property
    def needs_end_user(self) -> bool:
        """Whether the end user of a request must be known: one of them is limited or blocked."""
        return self._end_users.knows_end_users

    def open(
        self, context: RequestContext, authorization: Authorization, admitted: Admitted
    ) -> Deferred[Reservation] | None:
        """Begin to measure a request, and reserve what it may use.

        The context gets its end user, its meter, and its reservation if that is made at once.

        Args:
            context: the request.
            authorization: what its head was authorized for.
            admitted: what was admitted.

        Returns:
            The reservation to come, where the limiter's answer comes later; it fails as this does.

        Raises:
            EndUserBlocked: an administrator blocked the end user.
            RateLimitExceeded, BudgetExceeded: a limit does not let the request begin.
            LedgerUnavailable: its row could not be written.
            ModelUndetermined: the use of certain models is limited, and it cannot be told which this one is.
        """
        if self._refuses_unwritten and self._rows is not None and not self._rows.healthy:
            raise LedgerUnavailable(
                "The gateway cannot write down what requests use at present, and serves none until it can.",
                retry_after=5,
            )
        facts = admitted.facts
        head = context.head
        end_user = facts.end_user
        for name in self._end_user_headers:
            if name in head.first:
                end_user = head.first[name].decode("latin-1").strip() or end_user
                break
        limited = authorization.principal.limited
        if end_user is not None:
            context.end_user = end_user = end_user[:TEXT_LIMIT]
            known = self._find_end_user(end_user)
            if known is not None:
                if known.blocked:
                    raise EndUserBlocked("This end user was blocked. Ask an administrator to unblock it.")
                if not known.limited.allowance.is_unlimited:
                    limited = (*limited, known.limited)
        if self._rows is None and not limited:
            return None
        route = authorization.route
        key = (admitted.model, admitted.server.name, route.path, head.method)
        pricing = self._pricings.get(key) or self._pricing(key, route)
        prompt, audio = 0, None
        if pricing.takes_model:
            body = admitted.body
            if pricing.audio_uploads:
                audio = audio_uploaded(head.first)
            if audio is None:
                prompt = (head.length or 0) // BYTES_PER_TOKEN if body is None else estimate_prompt(body)
        # the meter does not keep `admitted`, which holds the body
        context.meter = meter = UsageMeter(pricing, prompt, facts.answers, admitted.asked_usage)
        if audio is not None:
            # its size tells nothing of tokens
            meter.audio, prompt = audio, TOKENS_PER_MEDIUM
        if admitted.asked_usage:
            meter.fingerprint = self._fingerprint(admitted, route.path)
        if not limited or route.route_class is RouteClass.READ_ONLY:
            return None
        if not admitted.model and route.takes_model and any(who.allowance.counts_models for who in limited):
            raise ModelUndetermined(
                "How much of certain models may be used is limited here, and the gateway cannot read from this request "
                'which it asks for: send it in the body as "model".',
                param="model",
            )
        tokens = estimate_total(
            prompt,
            generates=route.row.generates,
            max_tokens=facts.max_tokens,
            answers=facts.answers,
            assumed=self._assumed,
        )
        cost = expected_cost(prompt, tokens - prompt, pricing.prices)
        reserved = self._limiter.admit(limited, admitted.model, tokens, cost, self._now())
        if isinstance(reserved, Reservation):
            context.reservation = reserved
            return None
        return reserved

    def finished(self, context: RequestContext) -> None:
        """Find out what a request has used and what that costs, and settle its reservation."""
        meter = context.meter
        if meter is None:
            return
        pricing = meter.pricing
        try:
            # a server begins once it has the whole body
            if context.sent and (meter.status or context.body_complete):
                if context.head.length is None and not (meter.prompt_tokens or meter.audio):
                    # the size of a chunked body is known only now
                    meter.prompt_tokens = context.bytes_in // BYTES_PER_TOKEN if pricing.takes_model else 0
                try:
                    context.usage = usage = meter.usage(context.outcome)
                except Exception:
                    # neither its row nor its client may depend on what a server's response does to its reader
                    request_id = context.request_id.decode("ascii")
                    self._log.failure("The usage of {request_id} could not be read", request_id=request_id)
                    usage = context.usage
                # an error costs nothing
                if pricing.prices is not FREE and (usage.estimated or 200 <= meter.status < 300):
                    context.cost = cost_of(usage, pricing.prices)
        finally:
            if context.reservation is not None:
                tokens = context.usage.prompt_tokens + context.usage.completion_tokens
                self._limiter.settle(context.reservation, tokens, context.cost, self._now(), went_on=context.sent)

    def _pricing(self, key: tuple[str, str, str, bytes], route: Route) -> RoutePricing:
        """Return what is the same for all requests for one model, server, route and method."""
        model, server, path, method = key
        found = RoutePricing(route, self._prices_of(model, server) if route.takes_model else FREE)
        # a client may write anything, at any length
        if len(model) + len(path) + len(method) <= LONGEST_KEY:
            if len(self._pricings) >= MOST_PRICINGS:
                self._pricings.clear()
            self._pricings[key] = found
        return found

    def _fingerprint(self, admitted: Admitted, route: str) -> Fingerprint:
        # not every route's responses have one
        key = (admitted.server.name, admitted.model, route)
        found = self._fingerprints.get(key)
        if found is None:
            if len(self._fingerprints) >= MOST_FINGERPRINTS:
                self._fingerprints.clear()
            found = self._fingerprints[key] = Fingerprint()
        return found
