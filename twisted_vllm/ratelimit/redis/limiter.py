"""Limits that several processes, on one machine or many, count together in Redis."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.urls import RedisServer
from twisted_vllm.errors import LimitsUnavailable
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.headers import limit_headers
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter, SoftBudgetCrossed, ignore_soft_budget
from twisted_vllm.ratelimit.redis.connection import RedisConnection, RedisUnavailable
from twisted_vllm.ratelimit.redis.protocol import (
    Check,
    RedisReservation,
    Settlement,
    checks_of,
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


class RedisLimiter:
    """The limits of `LocalLimiter`, counted in Redis.

    To admit takes one round trip. To settle takes another, which nobody waits for.

    Every admission has a number, and Redis keeps the numbers that are not settled. After a lost connection the next one
    tells which admissions were done whose answer was lost: they are given back. Settlements are sent again, and Redis
    does each once. What a process holds counts while its lease lasts, so a process that was killed gives it back when
    the lease ends.

    Args:
        reactor: Twisted's.
        server: where Redis is.
        timeout: how long an answer may take, in seconds.
        on_loss: ``local`` or ``refuse``, as in the settings.
        local: counts while Redis is unavailable, and holds what the database says of budgets.
        on_soft_budget: called when spending crosses a soft budget, by one of all processes, once for each period.
        lease: how long the lease lasts, in seconds.
        clock: the Lua function ``clock`` in place of Redis' own clock, for tests.
    """

    def __init__(
        self,
        reactor: Any,
        server: RedisServer,
        *,
        timeout: float,
        on_loss: str,
        local: LocalLimiter,
        on_soft_budget: SoftBudgetCrossed = ignore_soft_budget,
        lease: float = LEASE_SECONDS,
        clock: str | None = None,
    ) -> None:
        self._refuses = on_loss == "refuse"
        self._outage = OutageLog(server.name, refuses=self._refuses)
        self._local = local
        self._on_soft_budget = on_soft_budget
        self._scripts = Scripts(int(lease * 1000), clock)
        self._renew_seconds = lease / 3
        self._connection = RedisConnection(reactor, server, timeout, self._connected, self._lost)
        self._renewal = LoopingCall(self._renew)
        self._renewal.clock = reactor
        self._process = secrets.token_hex(8)
        self._epoch = ""
        self._number = 0
        self._ready = False
        self._was_ready = False
        self._stopping = False
        self._unconfirmed = Unconfirmed()

    @property
    def is_ready(self) -> bool:
        """Whether Redis counts now."""
        return self._ready

    @property
    def process(self) -> str:
        """The name under which Redis keeps what this process holds."""
        return self._process

    @property
    def unconfirmed(self) -> int:
        """How many admissions and settlements Redis has not confirmed yet."""
        return len(self._unconfirmed)

    def start(self) -> None:
        """Begin to connect. While there is no connection, `on_loss` decides."""
        self._connection.start()

    def stop(self) -> Deferred[Any]:
        """Give back what this process holds, and close the connection."""
        self._stopping = True
        self._outage.silence()
        if self._renewal.running:
            self._renewal.stop()
        released: Deferred[Any] = succeed(None)
        if self._ready:
            released = self._connection.run(self._scripts.release, [], [self._process]).addErrback(_ignore_unavailable)
        self._ready = False
        return released.addCallback(lambda _: self._connection.stop())

    def admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Deferred[Reservation]:
        """Let a request begin; as `LocalLimiter.admit`, with its errors and `LimitsUnavailable`.

        A Deferred that is cancelled gives back its reservation.
        """
        if not limited:
            return succeed(self._local.admit(limited, model, tokens, cost, now))
        if not self._ready:
            return self._admit_without_redis(limited, model, tokens, cost, now)
        checks = checks_of(limited, model, tokens, cost, lambda who: self._local.budget_of(who, now))
        arguments = [argument for check in checks for argument in check.arguments()]
        self._number += 1
        process, number = self._process, self._number
        # The buckets are not known yet: if the answer is lost, the tokens count for a minute.
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
                self._admit_without_redis(limited, model, tokens, cost, now).chainDeferred(result)

        answer.addCallbacks(answered, failed)
        return result

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, sent: bool = True) -> None:
        """Count what a request used in place of what it reserved; as `LocalLimiter.settle`. It does not wait."""
        if not isinstance(reservation, RedisReservation):
            self._local.settle(reservation, tokens, cost, now, sent=sent)
        elif not reservation.settled:
            reservation.settled = True
            settlement = reservation.settlement(tokens, cost, sent=sent)
            number = self._unconfirmed.add(settlement)
            if self._ready:
                self._settle(number, settlement)

    def budget_loaded(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """As `LocalLimiter.budget_loaded`; the next request tells Redis."""
        self._local.budget_loaded(kind, id, spend, period_start)

    def budget_committed(self, kind: str, id: str, amount: int, total: int, period_start: int) -> None:
        """As `LocalLimiter.budget_committed`; the next request tells Redis."""
        self._local.budget_committed(kind, id, amount, total, period_start)

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """As `LocalLimiter.budget_reset`, in Redis too."""
        self._local.budget_reset(kind, id, spend, period_start)
        if self._ready:
            key = key_of("budget", kind, id)
            sent = self._connection.run(self._scripts.reset, [key], [str(period_start), str(spend)])
            sent.addErrback(_ignore_unavailable)

    def budget_forgotten(self, kind: str, id: str) -> None:
        """As `LocalLimiter.budget_forgotten`."""
        self._local.budget_forgotten(kind, id)

    def _admit_without_redis(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Deferred[Reservation]:
        if self._refuses:
            return fail(
                LimitsUnavailable("The limits of this key cannot be counted at present. Try again.", retry_after=1)
            )
        return maybeDeferred(self._local.admit, limited, model, tokens, cost, now)

    def _settle(self, number: int, settlement: Settlement) -> None:
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
        answer.addCallbacks(answered, self._reconnect)

    def _run(self, script: Script, checks: list[Check], arguments: list[str]) -> Deferred[str]:
        keys = [check.key for check in checks]
        return self._connection.run(script, keys, [self._process, self._epoch, *arguments])

    def _connected(self) -> None:
        """Begin an epoch: Redis ignores what former connections still have on their way."""
        self._epoch = secrets.token_hex(4)
        registered = self._connection.run(self._scripts.register, [], [self._process, self._epoch])
        registered.addCallbacks(self._registered, self._reconnect)

    def _registered(self, answer: str) -> None:
        if answer == "-1" and self._was_ready:
            # Redis lost its memory or the lease ended. Nothing is held any more, and nothing must be given back.
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
            self._connection.run(self._scripts.renew, [], [self._process]).addCallbacks(renewed, self._reconnect)

    def _lease_lost(self) -> None:
        self._lost("the lease of this process ended")
        self._connection.drop()

    def _reconnect(self, failure: Failure) -> None:
        """Go on with a new connection, and from what Redis knows then."""
        self._lost(failure.getErrorMessage())
        self._connection.drop()

    def _lost(self, reason: str) -> None:
        self._ready = False
        self._outage.begin(reason)


class Unconfirmed:
    """What Redis was asked to do and has not confirmed: admissions and settlements."""

    def __init__(self) -> None:
        self._number = 0
        self._admissions: dict[int, Settlement] = {}
        self._settlements: dict[int, Settlement] = {}

    def __len__(self) -> int:
        return len(self._admissions) + len(self._settlements)

    def admission_sent(self, number: int, undo: Settlement) -> None:
        """Remember an admission, and the settlement that gives it back."""
        self._admissions[number] = undo

    def admission_confirmed(self, number: int) -> None:
        """Forget an admission: Redis answered."""
        self._admissions.pop(number, None)

    def add(self, settlement: Settlement) -> int:
        """Remember a settlement, and return its number."""
        self._number += 1
        self._settlements[self._number] = settlement
        return self._number

    def confirmed(self, number: int) -> None:
        """Forget a settlement: Redis has done it."""
        self._settlements.pop(number, None)

    def recover(self, open_admissions: set[str]) -> Iterator[tuple[int, Settlement]]:
        """Yield the settlements to send after a connection was lost, with their numbers.

        Args:
            open_admissions: the numbers of the admissions that Redis knows as not settled.
        """
        for number, undo in self._admissions.items():
            if str(number) in open_admissions:
                self.add(undo)
        self._admissions.clear()
        yield from list(self._settlements.items())

    def clear(self) -> None:
        """Forget everything: Redis knows nothing of it."""
        self._admissions.clear()
        self._settlements.clear()


class OutageLog:
    """Logs once that Redis is unavailable, and once that it counts again.

    Args:
        server: what the log calls Redis.
        refuses: whether requests with limits are refused meanwhile.
    """

    _log = Logger()

    def __init__(self, server: str, *, refuses: bool) -> None:
        self._server = server
        self._then = "requests with limits are refused" if refuses else "this process counts limits for itself"
        self._is_out = False
        self._is_silent = False

    def begin(self, reason: str) -> None:
        """Log the outage, unless it is known."""
        if self._is_out or self._is_silent:
            return
        self._is_out = True
        self._log.error(
            "{server} does not count limits: {reason}. Until it does, {then}.",
            server=self._server,
            reason=reason,
            then=self._then,
        )

    def end(self) -> None:
        """Log the end of the outage, if there is one."""
        if self._is_out:
            self._is_out = False
            self._log.warn("{server} counts limits again.", server=self._server)

    def silence(self) -> None:
        """Log no more outages: the connection is about to be closed."""
        self._is_silent = True


def is_answer(failure: Failure) -> bool:
    """Return whether Redis is known to have done nothing."""
    error = failure.value
    return isinstance(error, RedisUnavailable) and error.answered


def _ignore_unavailable(failure: Failure) -> None:
    failure.trap(RedisUnavailable)
