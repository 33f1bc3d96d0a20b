"""Limits shared by several processes, on one machine or many, in Redis."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.alert_types import REDIS_ALERT
from twisted_vllm.config.redis_places import RedisCluster, RedisPlace
from twisted_vllm.errors import LimitsUnavailable
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.headers import limit_headers
from twisted_vllm.ratelimit.interfaces import Limiter
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter, SoftBudgetCrossed, ignore_soft_budget
from twisted_vllm.ratelimit.redis.client import RedisUnavailable
from twisted_vllm.ratelimit.redis.connection import RedisConnection
from twisted_vllm.ratelimit.redis.protocol import (
    CLUSTER_PREFIX,
    PREFIX,
    Check,
    RedisReservation,
    Settlement,
    checks_of,
    in_one_slot,
    key_of,
    read_results,
    refusals_of,
    tightest,
)
from twisted_vllm.ratelimit.redis.scripts import Script, Scripts
from twisted_vllm.ratelimit.refusals import error_of
from twisted_vllm.ratelimit.reservation import Reservation

#: how long a process's lease lasts, in seconds; the process renews it three times as often
LEASE_SECONDS = 15.0
#: settlements that are kept after Redis confirmed them, about 1 KiB each
RECENT_SETTLEMENTS = 1024


class RedisLimiter:
    """The limits of `LocalLimiter`, counted in Redis.

    An admission takes one round trip. A settlement takes another, which nothing waits for.

    Every admission has a number, and Redis keeps the numbers that are not settled. After a lost connection, the new one
    reports the admissions whose reply was lost: they are released. Settlements are sent again; each is applied once.
    The reservations of a process count while its lease lasts, so those of a killed process are released when its lease
    ends.

    Args:
        reactor: Twisted's.
        place: where Redis is.
        timeout: how long a reply may take, in seconds.
        on_loss: ``local`` or ``refuse``, as in the settings.
        local: keeps the budgets' spend from the database, and counts while Redis is unavailable.
        on_soft_budget: called when the spend crosses a soft budget, in one of all processes, once per period.
        lease: how long the lease lasts, in seconds.
        clock: a Lua function ``clock`` that replaces Redis' own clock, for tests.
        fallback: counts while Redis is unavailable, in place of `local`: the supervisor's, for several workers. What
            an administrator does is told to it by others.
    """

    def __init__(
        self,
        reactor: Any,
        place: RedisPlace,
        *,
        timeout: float,
        on_loss: str,
        local: LocalLimiter,
        on_soft_budget: SoftBudgetCrossed = ignore_soft_budget,
        lease: float = LEASE_SECONDS,
        clock: str | None = None,
        fallback: Limiter | None = None,
    ) -> None:
        self._refuses = on_loss == "refuse"
        who = "this process counts limits for itself" if fallback is None else "this gateway's supervisor counts limits"
        self._outage = OutageLog(place.name, refuses=self._refuses, otherwise=who)
        self._local = local
        self._fallback: Limiter = local if fallback is None else fallback
        self._on_soft_budget = on_soft_budget
        self._in_cluster = isinstance(place, RedisCluster)
        prefix = CLUSTER_PREFIX if self._in_cluster else PREFIX
        self._scripts = Scripts(int(lease * 1000), prefix, clock)
        self._renew_seconds = lease / 3
        self._connection = RedisConnection(reactor, place, timeout, self._connected, self._lost)
        self._renewal = LoopingCall(self._renew)
        self._renewal.clock = reactor
        self._process = secrets.token_hex(8)
        self._epoch = ""
        self._number = 0
        self._ready = False
        self._was_ready = False
        self._stopping = False
        self._unconfirmed = Unconfirmed()

    def reconfigure(self, on_loss: str) -> None:
        """Use another setting from now on; the argument is the constructor's."""
        self._refuses = on_loss == "refuse"
        self._outage.reconfigure(refuses=self._refuses)

    @property
    def is_ready(self) -> bool:
        """Whether Redis is in use at present."""
        return self._ready

    @property
    def process(self) -> str:
        """The name of this process in Redis."""
        return self._process

    @property
    def unconfirmed(self) -> int:
        """The number of admissions and settlements that Redis has not confirmed yet."""
        return len(self._unconfirmed)

    def start(self) -> None:
        """Start to connect. While there is no connection, `on_loss` decides."""
        self._connection.start()

    def stop(self) -> Deferred[Any]:
        """Release the reservations of this process, and close the connection."""
        self._stopping = True
        self._outage.silence()
        if self._renewal.running:
            self._renewal.stop()
        released: Deferred[Any] = succeed(None)
        if self._ready:
            released = self._call(self._scripts.release, [], [self._process]).addErrback(_ignore_unavailable)
        self._ready = False
        return released.addCallback(lambda _: self._connection.stop())

    def admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Deferred[Reservation]:
        """Admit a request, as `LocalLimiter.admit`; it may also fail with `LimitsUnavailable`.

        Cancelling the Deferred releases the reservation.
        """
        if not limited:
            return succeed(self._local.admit(limited, model, tokens, cost, now))
        if not self._ready:
            return self._admit_without_redis(limited, model, tokens, cost, now)
        checks = checks_of(limited, model, tokens, cost, lambda subject: self._local.budget_of(subject, now))
        arguments = [argument for check in checks for argument in check.arguments()]
        self._number += 1
        process, number = self._process, self._number
        # The buckets are not known yet: if the reply is lost, the tokens count for a minute.
        undo = RedisReservation(process, number, 0, cost, [(check, "") for check in checks]).settlement(0, 0)
        self._unconfirmed.admission_sent(number, undo)
        answer = self._run(self._scripts.admit, checks, [str(number), *arguments])
        result: Deferred[Reservation] = Deferred()

        def answered(text: str) -> None:
            words = text.split(" ")
            self._unconfirmed.admission_confirmed(number)
            if words[0] in ("lost", "stale"):
                self._lease_lost()
                admit_without_redis()
                return
            self._outage.end()
            results = read_results(words[1:])
            is_admitted = words[0] == "yes"
            requests_left, tokens_left = tightest(checks, results, admitted=is_admitted)
            if not is_admitted:
                if not result.called:
                    headers = limit_headers(requests_left, tokens_left)
                    result.errback(error_of(refusals_of(checks, results, now), headers))
                return
            held = [(check, each.bucket) for check, each in zip(checks, results, strict=True)]
            reservation = RedisReservation(process, number, tokens, cost, held)
            reservation.requests_left, reservation.tokens_left = requests_left, tokens_left
            if result.called:
                self.settle(reservation, 0, 0, now, sent=False)
            else:
                result.callback(reservation)

        def failed(failure: Failure) -> None:
            if is_answer(failure):
                self._unconfirmed.admission_confirmed(number)
            self._outage.begin(failure.getErrorMessage())
            admit_without_redis()

        def admit_without_redis() -> None:
            if not result.called:
                self._admit_without_redis(limited, model, tokens, cost, now).addCallbacks(admitted, refused)

        def admitted(reservation: Reservation) -> None:
            if result.called:
                # the caller has gone meanwhile
                self.settle(reservation, 0, 0, now, sent=False)
            else:
                result.callback(reservation)

        def refused(failure: Failure) -> None:
            if not result.called:
                result.errback(failure)

        answer.addCallbacks(answered, failed)
        return result

    def check(self, limited: Sequence[Limited], now: float) -> None:
        """As `LocalLimiter.check`, by what is known here: limits of 0, and the budgets' spend in the database.

        What Redis counts is not asked twice. While it is away, `on_loss` decides.
        """
        if not self._ready:
            if self._refuses:
                raise _unavailable()
            self._fallback.check(limited, now)
            return
        known = LocalLimiter()
        for subject in limited:
            if subject.allowance.max_budget is not None:
                budget = self._local.budget_of(subject, now)
                known.budget_loaded(subject.kind, subject.id, budget.spent, budget.start)
        known.check(limited, now)

    def would_admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float) -> Deferred[None]:
        """As `LocalLimiter.would_admit`; it counts until Redis has taken it back, which the Deferred waits for."""
        admitted = self.admit(limited, model, tokens, cost, now)
        return admitted.addCallback(lambda reservation: self._settled(reservation, 0, 0, now, sent=False))

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, sent: bool = True) -> None:
        """Replace a request's reservation by its actual usage, as `LocalLimiter.settle`; it does not wait for Redis."""
        self._settled(reservation, tokens, cost, now, sent=sent)

    def _settled(
        self, reservation: Reservation, tokens: int, cost: int, now: float, *, sent: bool
    ) -> Deferred[None] | None:
        """Settle a reservation; return what fires when Redis has done it, or None if it is not asked now."""
        if not isinstance(reservation, RedisReservation):
            self._fallback.settle(reservation, tokens, cost, now, sent=sent)
        elif not reservation.settled:
            reservation.settled = True
            settlement = reservation.settlement(tokens, cost, sent=sent)
            number = self._unconfirmed.add(settlement)
            if self._ready:
                return self._settle(number, settlement)
        return None

    def budget_loaded(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """As `LocalLimiter.budget_loaded`; the next request updates Redis."""
        self._local.budget_loaded(kind, id, spend, period_start)
        if self._fallback is not self._local:
            self._fallback.budget_loaded(kind, id, spend, period_start)

    def budget_committed(self, kind: str, id: str, amount: int, total: int, period_start: int) -> None:
        """As `LocalLimiter.budget_committed`; the next request updates Redis."""
        self._local.budget_committed(kind, id, amount, total, period_start)

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """As `LocalLimiter.budget_reset`, in Redis too."""
        self._local.budget_reset(kind, id, spend, period_start)
        if self._ready:
            key = key_of("budget", kind, id)
            sent = self._call(self._scripts.reset, [key], [str(period_start), str(spend)])
            sent.addErrback(_ignore_unavailable)

    def budget_released(self, kind: str, id: str) -> bool:
        """As `LocalLimiter.budget_released`; Redis has its own reservations."""
        is_rid = self._local.budget_released(kind, id)
        if is_rid and self._fallback is not self._local:
            self._fallback.budget_released(kind, id)
        return is_rid

    def budget_forgotten(self, kind: str, id: str) -> None:
        """As `LocalLimiter.budget_forgotten`."""
        self._local.budget_forgotten(kind, id)

    def _admit_without_redis(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Deferred[Reservation]:
        if self._refuses:
            return fail(_unavailable())
        admit: Any = self._fallback.admit
        admitted: Deferred[Reservation] = maybeDeferred(admit, limited, model, tokens, cost, now)
        return admitted

    def _settle(self, number: int, settlement: Settlement) -> Deferred[None]:
        def answered(text: str) -> None:
            words = text.split(" ")
            if words[0] != "done":
                self._lease_lost()
                return
            self._unconfirmed.confirmed(number)
            for word in words[1:]:
                index, spent = word.split(",")
                check = settlement.checks[int(index)]
                self._on_soft_budget(check.kind, check.id, int(spent), check.soft or 0)

        answer = self._run(self._scripts.settle, settlement.checks, settlement.arguments)
        # The next connection sends it again.
        return answer.addCallbacks(answered, self._reconnect)

    def _run(self, script: Script, checks: list[Check], arguments: list[str]) -> Deferred[str]:
        keys = [check.key for check in checks]
        return self._call(script, keys, [self._process, self._epoch, *arguments])

    def _call(self, script: Script, keys: Sequence[str], arguments: Sequence[str]) -> Deferred[str]:
        return self._connection.run(script, in_one_slot(keys) if self._in_cluster else keys, arguments)

    def _connected(self) -> None:
        """Start an epoch: Redis ignores commands that former connections still deliver."""
        self._epoch = secrets.token_hex(4)
        registered = self._call(self._scripts.register, [], [self._process, self._epoch])
        registered.addCallbacks(self._registered, self._reconnect)

    def _registered(self, answer: str) -> None:
        if answer == "-1" and self._was_ready:
            # Redis lost its data or the lease ended: the reservations are gone, and must not be released again.
            self._was_ready = False
            self._process = secrets.token_hex(8)
            self._unconfirmed.clear()
            self._connected()
            return
        self._ready = self._was_ready = True
        for number, settlement in self._unconfirmed.recover(set(answer.split(" "))):
            self._settle(number, settlement)
        if not self._renewal.running and not self._stopping:
            self._renewal.start(self._renew_seconds, now=False)
        self._outage.end()

    def _renew(self) -> None:
        def renewed(answer: str) -> None:
            if answer != "1":
                self._lease_lost()

        if self._ready:
            self._call(self._scripts.renew, [], [self._process]).addCallbacks(renewed, self._reconnect)

    def _lease_lost(self) -> None:
        self._lost("the lease of this process ended")
        self._connection.drop()

    def _reconnect(self, failure: Failure) -> None:
        """Reconnect, and recover from what Redis reports."""
        self._lost(failure.getErrorMessage())
        self._connection.drop()

    def _lost(self, reason: str) -> None:
        self._ready = False
        self._outage.begin(reason)


def _unavailable() -> LimitsUnavailable:
    return LimitsUnavailable("The limits of this key cannot be counted at present. Try again.", retry_after=1)


class Unconfirmed:
    """The admissions and settlements that were sent to Redis and are not confirmed.

    The last confirmed settlements are kept too: a replica that takes over may lack them.
    """

    def __init__(self) -> None:
        self._recent: deque[Settlement] = deque(maxlen=RECENT_SETTLEMENTS)
        self._number = 0
        self._admissions: dict[int, Settlement] = {}
        self._settlements: dict[int, Settlement] = {}

    def __len__(self) -> int:
        return len(self._admissions) + len(self._settlements)

    def admission_sent(self, number: int, undo: Settlement) -> None:
        """Add an admission, and the settlement that releases it."""
        self._admissions[number] = undo

    def admission_confirmed(self, number: int) -> None:
        """Remove an admission: Redis replied."""
        self._admissions.pop(number, None)

    def add(self, settlement: Settlement) -> int:
        """Add a settlement, and return its number."""
        self._number += 1
        self._settlements[self._number] = settlement
        return self._number

    def confirmed(self, number: int) -> None:
        """Remove a settlement: Redis applied it."""
        settlement = self._settlements.pop(number, None)
        if settlement is not None:
            self._recent.append(settlement)

    def recover(self, open_admissions: set[str]) -> Iterator[tuple[int, Settlement]]:
        """Yield the settlements to send after a connection was lost, with their numbers.

        Args:
            open_admissions: the numbers of the admissions that are not settled in Redis.
        """
        for number, undo in self._admissions.items():
            if str(number) in open_admissions:
                self.add(undo)
        self._admissions.clear()
        recent = list(self._recent)
        self._recent.clear()
        for settlement in recent:
            if settlement.admission in open_admissions:
                self.add(settlement)
            else:
                self._recent.append(settlement)
        yield from list(self._settlements.items())

    def clear(self) -> None:
        """Remove all: Redis lost them."""
        self._admissions.clear()
        self._settlements.clear()
        self._recent.clear()


class OutageLog:
    """Logs the beginning and the end of an outage of Redis, once each.

    Args:
        server: the name of Redis in the log.
        refuses: whether requests with limits are refused meanwhile.
        otherwise: what happens if not.
    """

    _log = Logger()

    def __init__(self, server: str, *, refuses: bool, otherwise: str = "this process counts limits for itself") -> None:
        self._server = server
        self._otherwise = otherwise
        self.reconfigure(refuses=refuses)
        self._is_out = False
        self._is_silent = False

    def reconfigure(self, *, refuses: bool) -> None:
        """Say from now on what else happens meanwhile."""
        self._then = "requests with limits are refused" if refuses else self._otherwise

    def begin(self, reason: str) -> None:
        """Log the beginning of an outage, unless it was logged."""
        if self._is_out or self._is_silent:
            return
        self._is_out = True
        self._log.error(
            "{server} does not count limits: {reason}. Until it does, {then}.",
            server=self._server,
            reason=reason,
            then=self._then,
            **REDIS_ALERT,
        )

    def end(self) -> None:
        """Log the end of the outage, if one was logged."""
        if self._is_out:
            self._is_out = False
            self._log.warn("{server} counts limits again.", server=self._server, **REDIS_ALERT)

    def silence(self) -> None:
        """Log no more outages: the connection is about to be closed."""
        self._is_silent = True


def is_answer(failure: Failure) -> bool:
    """Return whether Redis replied with the failure, and so did nothing."""
    error = failure.value
    return isinstance(error, RedisUnavailable) and error.answered


def _ignore_unavailable(failure: Failure) -> None:
    failure.trap(RedisUnavailable)
