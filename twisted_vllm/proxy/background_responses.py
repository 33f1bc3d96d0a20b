"""Charges responses that vLLM generates in the background (``background: true``), once, when they have ended.

vLLM answers such a request at once, and generates after it. So the request's reservation stays open, its ledger row is
kept, and the gateway asks the server for the response until it has ended, or at once when the client has asked for it.
Then the reservation is settled and the row is written. A file holds what is needed for that, so that a later run of the
gateway goes on with it; the row's id is the same, so that the ledger has it once.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.config.settings import Server
from twisted_vllm.context import Authorization, BackgroundResponse, RequestContext
from twisted_vllm.errors import GatewayError, TooManyBackgroundResponses
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.metrics.registry import PREFIX
from twisted_vllm.proxy.admission import Admitted
from twisted_vllm.proxy.background_charge import OUTCOMES, BackgroundWork, Charge, charge_of, pack_prices
from twisted_vllm.proxy.ledger import RepeatableUsageSink
from twisted_vllm.proxy.stored_answer import StoredAnswer, ask_for
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.interfaces import Limiter
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.usage.estimate import estimate_prompt
from twisted_vllm.usage.pricing import FREE
from twisted_vllm.usage.records import Usage
from twisted_vllm.usage.spool.format import clean
from twisted_vllm.usage.spool.pending import PendingFiles

#: the maximum number of responses that are followed, in all and of one key
MAX_FOLLOWED, MAX_OF_KEY = 10_000, 1_000
#: the maximum number of answers of one server that are waited for, and seconds to wait for a place among them
MAX_POLLS, BUSY_WAIT = 4, 1.0
#: seconds to the first poll of a response, and the maximum between two
FIRST_POLL, LONGEST_WAIT = 1.0, 15.0
#: how much longer each wait is than the one before
GROWTH = 1.5
#: bytes of an answer that add a second to the wait
BYTES_PER_SECOND = 262_144
#: answers 404 in a row after which a response is lost
MOST_MISSES = 3
#: seconds of failed polls, and seconds in all, after which a response is lost
GONE_SECONDS, MOST_SECONDS = 600.0, 43_200.0
#: seconds between searches for the files of processes that have ended
TAKE_OVER_SECONDS = 60.0

_encode_work = msgspec.json.Encoder().encode
_decode_work = msgspec.json.Decoder(BackgroundWork).decode


class _Followed:
    """A response that is followed. One that a former process followed is `unreserved` until it is reserved again."""

    __slots__ = (
        *("due", "failing_since", "misses", "polling", "reservation", "taken_over", "unreserved", "wait", "wanted"),
        "work",
    )

    def __init__(self, work: BackgroundWork, reservation: Reservation | None, taken_over: bool = False) -> None:
        self.work = work
        self.taken_over = self.unreserved = taken_over
        self.reservation = reservation
        self.wait = FIRST_POLL
        self.due = 0.0
        self.polling: Deferred[Any] | None = None
        self.wanted = False
        self.misses = 0
        self.failing_since: float | None = None


class BackgroundResponses(RequestObserver):
    """Follows background responses to their end, and charges them.

    Attributes:
        on_charged: called with each response that was charged, and its charge. None by default.
        on_seen_elsewhere: called with the id of each response that a client has asked for and that is not followed
            here: another process may follow it. None by default.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        client: PassThroughClient,
        servers: Iterable[Server],
        limiter: Limiter,
        index: KeyIndex,
        *,
        rows: RepeatableUsageSink | None,
        files: PendingFiles | None,
        assumed_output_tokens: int,
    ) -> None:
        """Set up.

        Args:
            clock: a provider of IReactorTime; its seconds are Unix seconds.
            client: asks servers.
            servers: all configured servers.
            limiter: settles what was reserved.
            index: knows the limits of everybody.
            rows: the sink for ledger rows; None without a ledger.
            files: keeps what is not charged yet; None forgets it at the end of the process.
            assumed_output_tokens: the tokens of a response without a limit.
        """
        self._clock = clock
        self._client = client
        self._servers: dict[str, Server] = {}
        self._limiter = limiter
        self._index = index
        self._rows = rows
        self._files = files
        self._followed: dict[str, _Followed] = {}
        self._of_key: Counter[str] = Counter()
        self._heap: list[tuple[float, str]] = []
        self._polls: Counter[str] = Counter()
        self._timer: Any = None
        self._recovery = LoopingCall(self.recover)
        self._recovery.clock = clock
        self._stopped = False
        self.on_charged: Callable[[BackgroundWork, Charge], None] | None = None
        self.on_seen_elsewhere: Callable[[str], None] | None = None
        self.reconfigure(servers, assumed_output_tokens)

    def reconfigure(self, servers: Iterable[Server], assumed_output_tokens: int) -> None:
        """Use other settings from now on; a server that is gone is still asked for what it had begun.

        The arguments are the constructor's.
        """
        begun = {followed.work.server for followed in self._followed.values()}
        kept = {name: server for name, server in self._servers.items() if name in begun}
        self._servers = kept | {server.name: server for server in reversed(tuple(servers))}
        self._assumed = assumed_output_tokens

    def __len__(self) -> int:
        """Return how many responses are followed."""
        return len(self._followed)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the responses that are followed."""
        return tuple(self._followed)

    @property
    def polls(self) -> int:
        """How many answers of servers are waited for."""
        return self._polls.total()

    # requests

    def begin(self, authorization: Authorization, admitted: Admitted) -> BackgroundResponse:
        """Prepare to follow the response of an admitted request.

        Raises:
            TooManyBackgroundResponses: no more can be followed.
        """
        key_id = authorization.principal.key_id
        if len(self._followed) >= MAX_FOLLOWED or (key_id and self._of_key[key_id] >= MAX_OF_KEY):
            raise TooManyBackgroundResponses(
                "Too many background responses are not finished. Send the request again later, or without "
                '"background".',
                param="background",
                retry_after=int(LONGEST_WAIT),
            )
        body = admitted.body or b""
        text = body.rope() if isinstance(body, HeldBody) else body
        return BackgroundResponse("", estimate_prompt(text), admitted.facts.max_tokens)

    def finished(self, context: RequestContext) -> None:
        """Follow the response of a request; poll at once a response that its client has asked for."""
        background = context.background
        if background is not None:
            if background.running:
                self._follow(context, background)
            return
        authorization = context.authorization
        if authorization is not None and authorization.response_id is not None and context.sent:
            if authorization.response_id in self._followed:
                self.seen(authorization.response_id)
            elif self.on_seen_elsewhere is not None:
                self.on_seen_elsewhere(authorization.response_id)

    def seen(self, response_id: str) -> None:
        """Poll a response at once: its client has asked for it, and may know its end. Others are ignored."""
        followed = self._followed.get(response_id)
        if followed is not None and not self._stopped:
            self._poll_at_once(followed)

    def _follow(self, context: RequestContext, background: BackgroundResponse) -> None:
        authorization, server, meter = context.authorization, context.server, context.meter
        assert authorization is not None
        assert server is not None
        assert meter is not None
        principal = authorization.principal
        limited = [(each.kind, each.id) for each in principal.limited]
        if context.end_user is not None:
            limited.append(("end_user", context.end_user))
        reservation = context.reservation
        if background.id in self._followed:
            # an administrator chose the id of another that is not finished: the server has one of the two
            if reservation is not None:
                self._limiter.settle(reservation, reservation.tokens, reservation.cost, self._clock.seconds())
            if self._rows is not None and background.row is not None:
                self._rows.append(background.row)
            return
        work = BackgroundWork(
            id=background.id,
            server=server.name,
            started=context.started,
            model=context.model,
            limited=tuple(limited),
            key_id=principal.key_id,
            tokens=0 if reservation is None else reservation.tokens,
            cost=0 if reservation is None else reservation.cost,
            prompt_tokens=background.prompt_tokens,
            max_tokens=background.max_tokens,
            seen_tokens=background.seen_tokens,
            confirmed=meter.status != 0,
            prices={} if meter.pricing.prices is FREE else pack_prices(meter.pricing.prices),
            row=None if background.row is None else clean(background.row),
            group=context.group,
            payer=authorization.payer if background.row is None else None,
        )
        if self._files is not None:
            self._files.save(work.id, _encode_work(work))
        self._add(_Followed(work, reservation))

    def _add(self, followed: _Followed) -> None:
        self._followed[followed.work.id] = followed
        self._of_key[followed.work.key_id] += 1
        self._schedule(followed, FIRST_POLL)

    # start and stop

    def recover(self) -> None:
        """Take over what processes that have ended did not charge, and reserve it again where that is possible."""
        if self._files is None:
            return
        for name, content in self._files.take_over():
            try:
                work = _decode_work(content)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self._log.error("The background response {name} cannot be read, and is not charged", name=name)
                self._files.remove(name)
                continue
            if work.id not in self._followed:
                followed = _Followed(work, None, taken_over=True)
                self._add(followed)
                self._reserve(followed)

    def start(self) -> None:
        """Look for what other processes leave behind, from time to time."""
        if self._files is not None:
            self._recovery.start(TAKE_OVER_SECONDS, now=False)

    def stop(self) -> None:
        """Leave what is not charged to a later run."""
        self._stopped = True
        if self._recovery.running:
            self._recovery.stop()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for followed in self._followed.values():
            if followed.polling is not None:
                followed.polling.cancel()
        if self._files is not None:
            self._files.close()

    def _reserve(self, followed: _Followed) -> None:
        """Reserve again what a former process had reserved. What a limit refuses is tried again after the next poll."""
        followed.unreserved = False
        work = followed.work
        limited = [Limited(kind, id, self._index.allowance_of(kind, id)) for kind, id in work.limited]
        limited = [each for each in limited if not each.allowance.is_unlimited]
        limited += self._index.model_budgets(limited, work.model)
        if not limited:
            return

        def reserved(reservation: Any) -> None:
            if work.id in self._followed:
                followed.reservation = reservation
            else:
                self._limiter.settle(reservation, 0, 0, self._clock.seconds(), sent=False)

        def refused(failure: Failure) -> None:
            failure.trap(GatewayError)
            followed.unreserved = True

        now = self._clock.seconds()
        reserving = maybeDeferred(self._limiter.admit, limited, work.model, work.tokens, work.cost, now)
        reserving.addCallbacks(reserved, refused)

    # polling

    def _schedule(self, followed: _Followed, delay: float) -> None:
        followed.due = self._clock.seconds() + delay
        heapq.heappush(self._heap, (followed.due, followed.work.id))
        self._set_timer()

    def _poll_at_once(self, followed: _Followed) -> None:
        if followed.polling is not None:
            followed.wanted = True
        elif followed.due > self._clock.seconds():
            self._schedule(followed, 0.0)

    def _set_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            if not self._heap or self._timer.getTime() <= self._heap[0][0]:
                return
            self._timer.cancel()
        if self._heap and not self._stopped:
            self._timer = self._clock.callLater(max(self._heap[0][0] - self._clock.seconds(), 0.0), self._turn)

    def _turn(self) -> None:
        now = self._clock.seconds()
        while self._heap and self._heap[0][0] <= now:
            due, id = heapq.heappop(self._heap)
            followed = self._followed.get(id)
            # an entry that a later one replaced is ignored
            if followed is not None and followed.due == due and followed.polling is None:
                if self._polls[followed.work.server] < MAX_POLLS:
                    self._poll(followed)
                else:
                    self._schedule(followed, BUSY_WAIT)
        self._set_timer()

    def _poll(self, followed: _Followed) -> None:
        work = followed.work
        server = self._servers.get(work.server)
        if server is None:
            # the operator removed it
            self._charge(followed, "", None)
            return
        self._polls[work.server] += 1
        polling: Deferred[Any] = ask_for(self._client, server, work.id, self._clock)
        followed.polling = polling
        polling.addBoth(self._polled, followed).addErrback(self._failed, followed)

    def _polled(self, found: StoredAnswer | Failure, followed: _Followed) -> None:
        self._polls[followed.work.server] -= 1
        followed.polling = None
        if self._stopped:
            return
        work, now = followed.work, self._clock.seconds()
        answer = None if isinstance(found, Failure) else found
        if answer is not None and answer.code == 200:
            work.confirmed = True
            followed.misses, followed.failing_since = 0, None
            if answer.status in OUTCOMES:
                self._charge(followed, answer.status, answer.usage)
                return
        else:
            is_missing = answer is not None and answer.code == 404
            followed.misses = followed.misses + 1 if is_missing or not work.confirmed else 0
            if followed.failing_since is None:
                followed.failing_since = now
            if followed.misses >= MOST_MISSES or now - followed.failing_since >= GONE_SECONDS:
                self._charge(followed, "", None)
                return
        if now - work.started >= MOST_SECONDS:
            self._charge(followed, "", None)
            return
        if followed.unreserved:
            self._reserve(followed)
        wait = followed.wait + (0 if answer is None else answer.size) / BYTES_PER_SECOND
        self._schedule(followed, 0.0 if followed.wanted else wait)
        followed.wanted = False
        followed.wait = min(followed.wait * GROWTH, LONGEST_WAIT)

    def _failed(self, failure: Failure, followed: _Followed) -> None:
        """Handle an internal error of the gateway."""
        self._log.failure("The background response {id} was not charged yet", failure, id=followed.work.id)
        if followed.work.id in self._followed and not self._stopped:
            self._schedule(followed, LONGEST_WAIT)

    # the end

    def _charge(self, followed: _Followed, status: str, reported: Usage | None) -> None:
        work, now = followed.work, self._clock.seconds()
        charge = charge_of(work, status, reported, now, self._assumed)
        if not status:
            self._log.warn(
                "The background response {id} of {server} is lost: it is charged as an estimate",
                id=work.id,
                server=work.server,
                once_a_second=work.server,
            )
        usage = charge.usage
        if followed.reservation is not None:
            tokens = usage.prompt_tokens + usage.completion_tokens
            self._limiter.settle(followed.reservation, tokens, charge.cost, now, sent=True)
        if self._rows is not None and work.row is not None:
            row = msgspec.structs.replace(
                work.row,
                outcome=charge.outcome,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                total_tokens=usage.total_tokens,
                estimated=usage.estimated,
                cost=charge.cost,
                total_us=max(round((now - work.started) * 1e6), work.row.total_us),
            )
            if followed.taken_over:
                # its former process may have ended between the row and the removal of the file
                self._rows.append_doubtful(row)
            else:
                self._rows.append(row)
            self._rows.flush()
        if self.on_charged is not None:
            self.on_charged(work, charge)
        # after the row, which a run that finds the file writes again, with its id
        if self._files is not None and (self._rows is None or self._rows.healthy):
            self._files.remove(work.id)
        del self._followed[work.id]
        self._of_key[work.key_id] -= 1
        if not self._of_key[work.key_id]:
            del self._of_key[work.key_id]


class BackgroundCollector(Collector):
    """Tells Prometheus how many background responses are followed."""

    def __init__(self, background: BackgroundResponses) -> None:
        """Read `background` at each scrape."""
        self._background = background

    def collect(self) -> Iterator[Metric]:
        """Return the current number."""
        yield GaugeMetricFamily(
            f"{PREFIX}_background_responses",
            "Background responses that are not charged yet.",
            value=len(self._background),
        )
