"""The limiter of a worker: the supervisor counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Cooperator
from twisted.logger import Logger

from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter, SoftBudgetCrossed, ignore_soft_budget
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.ratelimit.supervised.known_use import KnownUse
from twisted_vllm.ratelimit.supervised.messages import (
    IS_LOADED,
    LOAD,
    LOADED,
    SOFT_BUDGET,
    Crossed,
    Operation,
    Speaks,
    state_of,
    unavailable,
    wire,
)
from twisted_vllm.ratelimit.supervised.questions import Questions
from twisted_vllm.ratelimit.supervised.subjects import Subjects

#: budgets in one message
_LOADED_AT_ONCE = 500


class SupervisedReservation(Reservation):
    """A reservation in the supervisor.

    Attributes:
        number: of the admission; 0 if nobody's limits apply.
    """

    __slots__ = ("_key_spend", "number")

    def __init__(self, number: int, tokens: int, cost: int) -> None:
        super().__init__(tokens, cost)
        self.number = number
        self._key_spend: int | None = None

    @property
    def key_spend(self) -> int | None:
        """As `Reservation.key_spend`."""
        return self._key_spend

    def admitted(self, answer: Sequence[Any]) -> SupervisedReservation:
        """Take the answer to the admission, and return itself."""
        _, _, requests, tokens, spend = answer
        if requests is not None:
            self.requests_left = state_of(requests)
        if tokens is not None:
            self.tokens_left = state_of(tokens)
        if spend is not None:
            self._key_spend = int(spend)
        return self


class SupervisedLimiter:
    """The limits of `LocalLimiter`, counted in the supervisor for all workers.

    An admission takes one round trip; a settlement is told, and nothing waits for it. Nobody is asked about requests to
    which no limit applies. While the supervisor does not answer, requests with limits are refused.

    Args:
        supervisor: talks to the supervisor.
        questions: the worker's questions.
        clock: the reactor.

    Attributes:
        on_soft_budget: called in the housekeeper when the spend crosses a soft budget, once per period.
    """

    _log = Logger()

    def __init__(self, supervisor: Speaks, questions: Questions, clock: IReactorTime) -> None:
        self.on_soft_budget: SoftBudgetCrossed = ignore_soft_budget
        self._supervisor = supervisor
        self._questions = questions
        supervisor.on(SOFT_BUDGET, Crossed, self._crossed)
        self._subjects = Subjects(questions.add)
        self._use = KnownUse(supervisor, clock)

    @property
    def is_away(self) -> bool:
        """Whether the supervisor does not answer, so that every request with limits is refused."""
        return self._questions.is_late

    def admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Reservation | Deferred[Reservation]:
        """Admit a request, as `LocalLimiter.admit`; it may also fail with `LimitsUnavailable`.

        The supervisor uses its own clock. Cancelling the Deferred releases the reservation.
        """
        if not limited:
            return SupervisedReservation(0, tokens, cost)
        questions, number_of = self._questions, self._subjects.number_of
        number = questions.next_number()
        reservation = SupervisedReservation(number, tokens, cost)
        subjects = [number_of(each) for each in limited]
        asked = questions.ask(number, (Operation.ADMIT, number, model, wire(tokens), wire(cost), *subjects))
        return asked.addCallback(reservation.admitted)

    def would_admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Deferred[None] | None:
        """As `LocalLimiter.would_admit`: the supervisor takes the admission back before it does anything else."""
        admitted = self.admit(limited, model, tokens, cost, now)
        if not isinstance(admitted, Deferred):
            return None
        # in the same message
        self._questions.add((Operation.SETTLE, self._questions.last_number, 0, 0, False))
        return admitted.addCallback(lambda reservation: None)

    def check(self, limited: Sequence[Limited], now: float) -> None:
        """As `LocalLimiter.check`, by what is known here: limits of 0. The supervisor is not asked twice.

        Raises:
            LimitsUnavailable: the supervisor is late.
        """
        if self._questions.is_late and limited:
            raise unavailable()
        if any(_admits_nothing(each) for each in limited):
            LocalLimiter().check(limited, now)

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, sent: bool = True) -> None:
        """Replace a request's reservation by its actual usage, as `LocalLimiter.settle`; it does not wait."""
        if reservation.settled or not isinstance(reservation, SupervisedReservation):
            return
        reservation.settled = True
        if reservation.number:
            self._questions.add((Operation.SETTLE, reservation.number, wire(tokens), wire(cost), sent))

    def budget_loaded(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Use a budget, as it was read from the database. What the supervisor knows of it already stays."""
        if not self._questions.is_late:
            self._questions.add((Operation.LOADED, kind, id, wire(spend), period_start))

    def budget_committed(self, kind: str, id: str, amount: int, total: int, period_start: int) -> None:
        """As `LocalLimiter.budget_committed`."""
        self._questions.add((Operation.COMMITTED, kind, id, wire(amount), wire(total), period_start))

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int, *, is_found: bool = False) -> None:
        """As `LocalLimiter.budget_reset`.

        Args:
            kind: the owner's kind.
            id: the owner's id.
            spend: in picodollars.
            period_start: the first second of its period.
            is_found: whether it was found in the database; else this process has set it.
        """
        self._questions.add((Operation.RESET, kind, id, wire(spend), period_start, is_found))

    def budget_released(self, kind: str, id: str) -> bool:
        """Use a budget no more. The supervisor keeps it while others use it, or while it is not idle."""
        if not self._questions.is_late:
            self._questions.add((Operation.RELEASED, kind, id))
        return True

    def budget_forgotten(self, kind: str, id: str, *, is_found: bool = False) -> None:
        """As `LocalLimiter.budget_forgotten`; `is_found` as in `budget_reset`."""
        self._questions.add((Operation.GONE, kind, id, is_found))

    def used(self, subject: Limited, model: str, now: float) -> Mapping[str, int]:
        """As `LocalLimiter.used`, as the supervisor told it after the last look."""
        return self._use.used(subject)

    def budget_of(self, subject: Limited, now: float) -> Budget | None:
        """As `LocalLimiter.budget_of`, a copy, likewise; None if it is not known."""
        return self._use.budget_of(subject, now)

    def tell_soft_budget(self, kind: str, id: str, spent: int, soft: int) -> None:
        """Tell the housekeeper that a soft budget was reached, as Redis says."""
        self._supervisor.tell(SOFT_BUDGET, Crossed(kind, id, str(spent), str(soft)))

    def flush(self) -> None:
        """Send what this turn has settled now, before anything that is sent afterwards."""
        self._questions.flush()

    def load(self, budgets: Sequence[tuple[str, str, int, int]], clock: Any) -> Deferred[Any]:
        """Tell the supervisor what the database has of all budgets, unless it knows. It admits nobody before.

        Args:
            budgets: the arguments of `budget_loaded` for each.
            clock: the reactor, which runs this in steps.
        """

        def answered(is_loaded: bool) -> Deferred[Any]:
            return succeed(None) if is_loaded else _in_steps(self._load(budgets), clock)

        return self._supervisor.ask(IS_LOADED, None, bool).addCallback(answered).addErrback(self._failed)

    def _load(self, budgets: Sequence[tuple[str, str, int, int]]) -> Iterable[None]:
        for first in range(0, len(budgets), _LOADED_AT_ONCE):
            some = budgets[first : first + _LOADED_AT_ONCE]
            self._supervisor.tell(LOAD, [(kind, id, wire(spend), start) for kind, id, spend, start in some])
            yield
        self._supervisor.tell(LOADED, None)

    def _crossed(self, crossed: Crossed, sender: int) -> None:
        self.on_soft_budget(crossed.kind, crossed.id, int(crossed.spent), int(crossed.soft))

    def _failed(self, failure: Any) -> None:
        self._log.failure("The budgets could not be told to the supervisor", failure)


def _in_steps(work: Iterable[None], clock: Any) -> Deferred[Any]:
    cooperator = Cooperator(scheduler=lambda step: clock.callLater(0.0, step))
    return cooperator.cooperate(iter(work)).whenDone()


def _admits_nothing(limited: Limited) -> bool:
    allowance = limited.allowance
    return (
        allowance.rpm == 0
        or allowance.tpm == 0
        or allowance.parallel == 0
        or (allowance.max_budget is not None and allowance.max_budget <= 0)
    )
