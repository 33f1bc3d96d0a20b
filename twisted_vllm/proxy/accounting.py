"""The books of the pass-through: what a request may use is reserved before it goes on, and what it used is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_vllm.api_routes import Route, RouteClass
from twisted_vllm.errors import EndUserBlocked, LedgerUnavailable, ModelUndetermined
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.observability.request_record import RequestRecord
from twisted_vllm.proxy.admission import Admitted, Entry
from twisted_vllm.proxy.interfaces import EndUsers, Limiter, Rows
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.usage.estimate import BYTES_PER_TOKEN, TOKENS_PER_MEDIUM, estimate_prompt, estimate_total
from twisted_vllm.usage.meter import UsageMeter
from twisted_vllm.usage.pricing import FREE, PriceTable, RoutePricing, cost_of, expected_cost
from twisted_vllm.usage.readers.stream_filter import Fingerprint
from twisted_vllm.usage.readers.uploaded_audio import audio_uploaded
from twisted_vllm.usage.records import NOTHING_USED, Target, UsageRow
from twisted_vllm.usage.references import refer

#: servers' fingerprints that are remembered, and tariffs
MOST_FINGERPRINTS = MOST_TARIFFS = 1_000
#: characters of model, path and method up to which a tariff is remembered
LONGEST_KEY = 512

#: characters of an end user's or a model's name, and of a header's value, that are kept
TEXT_LIMIT = 255


class Accounting:
    """Opens an account for each request that goes to a server, and closes it when the request is over."""

    _log = Logger()

    def __init__(
        self,
        *,
        limiter: Limiter,
        end_users: EndUsers,
        prices: PriceTable,
        rows: Rows | None,
        refuses_unwritten: bool = False,
        assumed_output_tokens: int = 1024,
        end_user_headers: Sequence[bytes] = (),
        usage_headers: Sequence[bytes] = (),
        make_id: Callable[[float], bytes],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Open the books.

        Args:
            limiter: counts.
            end_users: tells what is known of an end user.
            prices: what models cost.
            rows: where the ledger's rows go; None keeps none.
            refuses_unwritten: whether a request is refused whose row cannot be written.
            assumed_output_tokens: what an answer is taken to have at most, where the client does not say.
            end_user_headers: lower-case names of the headers that name an end user, the first of which counts.
            usage_headers: lower-case names of the headers that rows keep.
            make_id: makes the id of a row of a request that began at some Unix second, 32 hex digits.
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
        self._usage_headers = tuple(usage_headers)
        self._make_id = make_id
        self._now = now
        self._fingerprints: dict[tuple[str, str, str], Fingerprint] = {}
        self._tariffs: dict[tuple[str, str, str, bytes], RoutePricing] = {}

    @property
    def needs_end_user(self) -> bool:
        """Whether it must be known for whom a request is made: somebody has limits of his own, or was blocked."""
        return self._end_users.knows_end_users

    def open(
        self, request: GatewayRequest, entry: Entry, admitted: Admitted
    ) -> tuple[UsageMeter | None, Deferred[Reservation] | None]:
        """Reserve what a request may use.

        Args:
            request: the request.
            entry: its admitted head.
            admitted: what was admitted.

        Returns:
            The charge, if anybody wants to know what is used; and where the reservation comes later, a Deferred of it,
            which fails as this does.

        Raises:
            EndUserBlocked: an administrator blocked whom it asks for.
            RateLimitExceeded, BudgetExceeded: a limit does not let it begin.
            LedgerUnavailable: its row could not be written.
            ModelUndetermined: the use of certain models is limited, and it cannot be told which this one is.
        """
        if self._refuses_unwritten and self._rows is not None and not self._rows.healthy:
            raise LedgerUnavailable(
                "The gateway cannot write down what requests use at present, and serves none until it can.",
                retry_after=5,
            )
        facts = admitted.facts
        end_user = facts.end_user
        for name in self._end_user_headers:
            if name in request.head:
                end_user = request.head[name].decode("latin-1").strip() or end_user
                break
        limited = entry.principal.limited
        if end_user is not None:
            end_user = end_user[:TEXT_LIMIT]
            known = self._find_end_user(end_user)
            if known is not None:
                if known.blocked:
                    raise EndUserBlocked("This end user was blocked. Ask an administrator to unblock it.")
                if not known.limited.allowance.is_unlimited:
                    limited = (*limited, known.limited)
        if self._rows is None and not limited:
            return None, None
        route = entry.route
        key = (admitted.model, admitted.server.name, route.path, request.method)
        tariff = self._tariffs.get(key) or self._tariff(key, route)
        prompt, audio = 0, None
        if tariff.takes_model:
            body = admitted.body
            if tariff.audio_uploads:
                audio = audio_uploaded(request.head)
            if audio is None:
                prompt = (request.body_length or 0) // BYTES_PER_TOKEN if body is None else estimate_prompt(body)
        # not what was admitted: that holds the request's body
        charge = UsageMeter(tariff, end_user, prompt, facts.answers, admitted.asked_usage)
        if audio is not None:
            # its size tells nothing of tokens
            charge.audio, prompt = audio, TOKENS_PER_MEDIUM
        if admitted.asked_usage:
            charge.fingerprint = self._fingerprint(admitted, route.path)
        if not limited or route.route_class is RouteClass.READ_ONLY:
            return charge, None
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
        cost = expected_cost(prompt, tokens - prompt, tariff.prices)
        reserved = self._limiter.admit(limited, admitted.model, tokens, cost, self._now())
        if isinstance(reserved, Reservation):
            charge.reservation = reserved
            return charge, None
        return charge, reserved

    def close(self, request: GatewayRequest, charge: UsageMeter, went_on: bool, record: RequestRecord) -> None:
        """Settle, and write the row of a request that went on to a server.

        Args:
            request: the request that is over.
            charge: what it was charged with.
            went_on: whether it was sent.
            record: its log record.
        """
        tariff = charge.pricing
        usage, cost = NOTHING_USED, 0
        try:
            # a server begins once it has the whole body
            if went_on and (charge.status or request.body_complete):
                if request.body_length is None and not (charge.prompt_tokens or charge.audio):
                    # only now it is known how long it was
                    charge.prompt_tokens = request.body_received // BYTES_PER_TOKEN if tariff.takes_model else 0
                try:
                    usage = charge.usage(record.outcome)
                except Exception:
                    # its row must not depend on what a server's answer does to its reader, nor must its client
                    self._log.failure("The usage of {request_id} could not be read", request_id=record.request_id)
                # an error costs nothing
                if tariff.prices is not FREE and (usage.estimated or 200 <= charge.status < 300):
                    cost = cost_of(usage, tariff.prices)
        finally:
            # whatever a server's answer does to its reader: nothing stays reserved
            if charge.reservation is not None:
                tokens = usage.prompt_tokens + usage.completion_tokens
                self._limiter.settle(charge.reservation, tokens, cost, self._now(), went_on=went_on)
        if self._rows is None or not went_on:
            return
        entry = request.note.entry
        head = request.head
        started = request.started
        first_byte = request.first_byte
        row_id, request_id = record.request_id, ""
        if b"x-request-id" in head:
            # only an id that was made here is nobody else's
            row_id, request_id = self._make_id(started).decode("ascii"), row_id
        self._rows.append(
            # in the order of its fields: by their names it costs twice as much
            UsageRow(
                row_id,
                int(started * 1e6),
                entry.payer,
                tariff.target or _target(tariff, entry.route, record),
                request_id,
                charge.end_user,
                self._kept(head) if self._usage_headers else None,
                record.status,
                record.outcome,
                record.error,
                charge.is_stream,
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.completion_tokens,
                usage.reasoning_tokens,
                usage.total_tokens,
                usage.audio_ms,
                usage.estimated,
                cost,
                None if first_byte is None else int((first_byte - started) * 1e6),
                round(record.total_ms * 1000),
                record.bytes_in,
                record.bytes_out,
            )
        )

    def _tariff(self, key: tuple[str, str, str, bytes], route: Route) -> RoutePricing:
        """Return what holds for a request, the same for all that ask the same."""
        model, server, path, method = key
        found = RoutePricing(route, self._prices_of(model, server) if route.takes_model else FREE)
        # a client may write anything, at any length
        if len(model) + len(path) + len(method) <= LONGEST_KEY:
            if len(self._tariffs) >= MOST_TARIFFS:
                self._tariffs.clear()
            self._tariffs[key] = found
        return found

    def _kept(self, head: Mapping[bytes, bytes]) -> dict[str, str] | None:
        found = {
            name.decode("ascii"): head[name].decode("latin-1")[:TEXT_LIMIT]
            for name in self._usage_headers
            if name in head
        }
        return found or None

    def _fingerprint(self, admitted: Admitted, route: str) -> Fingerprint:
        # not every route's answers have one
        key = (admitted.server.name, admitted.model, route)
        found = self._fingerprints.get(key)
        if found is None:
            if len(self._fingerprints) >= MOST_FINGERPRINTS:
                self._fingerprints.clear()
            found = self._fingerprints[key] = Fingerprint()
        return found


def _target(tariff: RoutePricing, route: Route, record: RequestRecord) -> msgspec.Raw:
    """Return what requests of a tariff ask of whom, in the words of the log, from which secrets are struck out."""
    model, where = record.model[:TEXT_LIMIT], route.name or record.route
    found = tariff.target = refer(Target(model, record.server, where, record.method, tariff.prices.text))
    return found
