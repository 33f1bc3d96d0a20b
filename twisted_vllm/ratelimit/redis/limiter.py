"""Limits that several processes, on one machine or many, count together in Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from twisted_vllm.config.urls import RedisServer
from twisted_vllm.errors import LimitsUnavailable
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter, SoftBudgetCrossed, tell_nobody
from twisted_vllm.ratelimit.redis.connection import RedisAway, RedisConnection
from twisted_vllm.ratelimit.redis.outage import OutageNotice
from twisted_vllm.ratelimit.redis.protocol import (
    Check,
    RedisReservation,
    Settlement,
    checks_of,
    headers_of_answer,
    key_of,
    read_answer,
    refusals_of,
)
from twisted_vllm.ratelimit.redis.scripts import Script, Scripts
from twisted_vllm.ratelimit.redis.unsettled import Unsettled
from twisted_vllm.ratelimit.refusals import error_of
from twisted_vllm.ratelimit.reservation import Reservation

#: for how long what a process holds outlasts it; it renews that three times as often
LEASE_SECONDS = 15.0


class RedisLimiter:
    """The limits of `LocalLimiter`, counted in Redis: a round trip to admit, and one to settle that nobody waits for.

    Every admission has a number, and Redis keeps those that are not settled. So when a connection is lost it is known,
    once there is another, which admissions were done whose answer was lost, and they are given back; settlements are
    sent again, as each is done once. What a process holds counts as long as its lease, which it renews: a process that
    was killed gives back what it held when that ends.

    Args:
        reactor: Twisted's.
        server: where Redis is.
        timeout: seconds that an answer may take.
        on_loss: ``local`` or ``refuse``, as in the settings.
        local: what counts while Redis is away, and what knows what the database says of budgets.
        on_soft_budget: called when spending crosses a soft budget: by one of all processes, once for each period.
        lease: seconds for which what this process holds outlasts it.
        clock: the text of Redis' clock, for tests.
    """

    def __init__(
        self,
        reactor: Any,
        server: RedisServer,
        *,
        timeout: float,
        on_loss: str,
        local: LocalLimiter,
        on_soft_budget: SoftBudgetCrossed = tell_nobody,
        lease: float = LEASE_SECONDS,
        clock: str | None = None,
    ) -> None:
        self._refuses = on_loss == "refuse"
        self._loss = OutageNotice(server.name, refuses=self._refuses)
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
        self._unsettled = Unsettled()

    @property
    def is_ready(self) -> bool:
        """Whether Redis counts at present."""
        return self._ready

    def start(self) -> None:
        """Begin to connect; until then, and whenever there is no connection, `on_loss` decides."""
        self._connection.start()

    def stop(self) -> Deferred[None]:
        """Give back what this process holds, and close the connection."""
        self._stopping = True
        self._loss.is_wanted()
        if self._renewal.running:
            self._renewal.stop()
        farewell: Deferred[Any] = succeed(None)
        if self._ready:
            farewell = self._connection.run(self._scripts.bye, [], [self._process]).addErrback(_ignore_away)
        self._ready = False
        return farewell.addCallback(lambda _: self._connection.stop())

    def admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Deferred[Reservation]:
        """Let a request begin; as `LocalLimiter.admit`, with its errors, and `LimitsUnavailable`.

        A Deferred that is cancelled gives back what it would have got.
        """
        if not limited:
            return succeed(self._local.admit(limited, model, tokens, cost, now))
        if not self._ready:
            return self._without_redis(limited, model, tokens, cost, now)
        checks = checks_of(limited, model, tokens, cost, lambda who: self._local.budget_of(who, now))
        arguments = [argument for check in checks for argument in check.arguments()]
        self._number += 1
        process, number = self._process, self._number
        # It is not known yet where tokens are counted: of an admission whose answer is lost, they count for a minute.
        nowhere = RedisReservation(process, number, 0, cost, [(check, "") for check in checks], [])
        self._unsettled.admission_sent(number, nowhere.settlement(0, 0))
        answer = self._run(self._scripts.admit, checks, [str(number), *arguments])
        result: Deferred[Reservation] = Deferred()

        def answered(text: str) -> None:
            words = text.split(" ")
            self._unsettled.admission_answered(number)
            if words[0] in ("lost", "stale"):
                self._lease_lost()
                go_on_without()
                return
            self._loss.is_over()
            found = read_answer(words[1:])
            headers = headers_of_answer(checks, found, admitted=words[0] == "yes")
            if words[0] == "no":
                if not result.called:
                    result.errback(error_of(refusals_of(checks, found, now), headers))
                return
            held = [(check, said.where) for check, said in zip(checks, found, strict=True)]
            reservation = RedisReservation(process, number, tokens, cost, held, headers)
            if result.called:
                self.settle(reservation, 0, 0, now, went_on=False)
            else:
                result.callback(reservation)

        def failed(failure: Failure) -> None:
            if is_answer(failure):
                self._unsettled.admission_answered(number)
            self._loss.begins(failure.getErrorMessage())
            go_on_without()

        def go_on_without() -> None:
            if not result.called:
                self._without_redis(limited, model, tokens, cost, now).chainDeferred(result)

        answer.addCallbacks(answered, failed)
        return result

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, went_on: bool = True) -> None:
        """Count what a request used in place of what was reserved; as `LocalLimiter.settle`. Nobody waits for it."""
        if not isinstance(reservation, RedisReservation):
            self._local.settle(reservation, tokens, cost, now, went_on=went_on)
        elif not reservation.settled:
            reservation.settled = True
            settlement = reservation.settlement(tokens, cost, went_on=went_on)
            number = self._unsettled.settle(settlement)
            if self._ready:
                self._settle(number, settlement)

    def budget_loaded(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """As `LocalLimiter.budget_loaded`; Redis is told with the next request."""
        self._local.budget_loaded(kind, id, spend, period_start)

    def budget_committed(self, kind: str, id: str, amount: int, total: int, period_start: int) -> None:
        """As `LocalLimiter.budget_committed`; Redis is told with the next request."""
        self._local.budget_committed(kind, id, amount, total, period_start)

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """As `LocalLimiter.budget_reset`, in Redis as well."""
        self._local.budget_reset(kind, id, spend, period_start)
        if self._ready:
            key = key_of("budget", kind, id)
            sent = self._connection.run(self._scripts.reset, [key], [str(period_start), str(spend)])
            sent.addErrback(_ignore_away)

    def budget_forgotten(self, kind: str, id: str) -> None:
        """As `LocalLimiter.budget_forgotten`."""
        self._local.budget_forgotten(kind, id)

    def _without_redis(
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
            self._unsettled.settled(number)
            for word in words[1:]:
                index, spent = word.split(",")
                check = settlement.checks[int(index)]
                self._on_soft_budget(check.kind, check.id, int(spent), check.soft or 0)

        answer = self._run(self._scripts.settle, settlement.checks, settlement.arguments)
        # It is sent again with the next connection.
        answer.addCallbacks(answered, lambda failure: self._begin_again(failure.getErrorMessage()))

    def _run(self, script: Script, checks: list[Check], arguments: list[str]) -> Deferred[str]:
        keys = [check.key for check in checks]
        return self._connection.run(script, keys, [self._process, self._epoch, *arguments])

    def _connected(self) -> None:
        """Begin an epoch: what former connections still have on their way is not done any more."""
        self._epoch = secrets.token_hex(4)
        greeted = self._connection.run(self._scripts.hello, [], [self._process, self._epoch])
        greeted.addCallbacks(self._greeted, lambda failure: self._begin_again(failure.getErrorMessage()))

    def _greeted(self, answer: str) -> None:
        if answer == "-1" and self._was_ready:
            # Redis lost its memory or the lease ended: what was held is not held, and must not be given back.
            self._was_ready = False
            self._process = secrets.token_hex(8)
            self._unsettled.forget()
            self._connected()
            return
        self._ready = self._was_ready = True
        for number, settlement in self._unsettled.recover(set(answer.split(" "))):
            self._settle(number, settlement)
        if not self._renewal.running and not self._stopping:
            self._renewal.start(self._renew_seconds, now=False)
        self._loss.is_over()

    def _renew(self) -> None:
        def renewed(answer: str) -> None:
            if answer != "1":
                self._lease_lost()

        if self._ready:
            sent = self._connection.run(self._scripts.renew, [], [self._process])
            sent.addCallbacks(renewed, lambda failure: self._begin_again(failure.getErrorMessage()))

    def _lease_lost(self) -> None:
        self._begin_again("the lease of this process ended")

    def _begin_again(self, reason: str) -> None:
        """Go on with a new connection, and from what Redis knows then."""
        self._lost(reason)
        self._connection.drop()

    def _lost(self, reason: str) -> None:
        self._ready = False
        self._loss.begins(reason)


def is_answer(failure: Failure) -> bool:
    """Return whether it is known that nothing was done."""
    error = failure.value
    return isinstance(error, RedisAway) and error.answered


def _ignore_away(failure: Failure) -> None:
    failure.trap(RedisAway)
