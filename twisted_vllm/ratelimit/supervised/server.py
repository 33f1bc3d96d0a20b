"""The supervisor's side of the limits of workers."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from twisted.logger import Logger

from twisted_vllm.errors import BudgetExceeded, RateLimitExceeded
from twisted_vllm.ratelimit.allowance import END_USER, Allowance, Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.memory.reconciliation import BudgetReconciliation
from twisted_vllm.ratelimit.minute_counts import MinuteCounts
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.ratelimit.supervised.echoes import Echoes
from twisted_vllm.ratelimit.supervised.messages import (
    BUDGETS,
    IS_LOADED,
    LIMITS,
    LOAD,
    LOADED,
    SOFT_BUDGET,
    TOLD,
    USED,
    Answer,
    Crossed,
    Known,
    Operation,
    Page,
    Told,
    Used,
    refusal,
    wire,
    wire_state,
)

M = TypeVar("M")

#: soft budgets that were reached while there is no housekeeper
MOST_SOFT = 10_000
#: the slot of the housekeeper
_HOUSEKEEPER = 0
#: budgets that are looked at again when one is released
_LOOKED_AT_AGAIN = 2

#: what the windows of requests and tokens are asked for with
_RATES = Allowance(rpm=1, tpm=1)

_allowance = msgspec.json.Decoder(Allowance).decode


class Hears(Protocol):
    """How the supervisor talks to its processes; `Hub` says more."""

    @property
    def ready(self) -> Mapping[int, int]:
        """The slots of the processes, by their numbers."""

    def send(self, process: int, topic: str, message: Any) -> None:
        """Send a message to a process."""

    def on(self, topic: str, kind: type[M], handler: Callable[[M, int], None]) -> None:
        """Have a handler called with each message of a topic and its sender's number."""

    def answers(self, topic: str, kind: type[M], handler: Callable[[M, int], Any]) -> None:
        """Have a handler answer the questions of a topic."""

    def on_joined(self, handler: Callable[[int], None]) -> None:
        """Have a handler called with the number of each process that is ready."""

    def on_left(self, handler: Callable[[int], None]) -> None:
        """Have a handler called with the number of each process that has ended."""


class _Process:
    """What a process has: numbers of subjects, admissions that are not settled, and budgets that it uses."""

    __slots__ = ("budgets", "reservations", "subjects")

    def __init__(self) -> None:
        self.subjects: dict[int, Limited] = {}
        self.reservations: dict[int, Reservation] = {}
        self.budgets: set[tuple[str, str]] = set()


class LimitServer:
    """Counts for all workers, with one `LocalLimiter`.

    Before the housekeeper has told what the database has of all budgets, nobody is answered: what workers send waits.
    What a process that has ended reserved is released; its requests and their estimated tokens stay counted.

    Attributes:
        limiter: counts.
        operations: how many operations workers asked for: admissions, settlements, counts.
        on_loaded: called once the budgets are loaded.
    """

    _log = Logger()

    def __init__(
        self,
        hub: Hears,
        limiter: LocalLimiter,
        reconciliation: BudgetReconciliation,
        counts: Mapping[int, MinuteCounts],
        now: Callable[[], float],
    ) -> None:
        """Set up.

        Args:
            hub: talks to the processes.
            limiter: counts, and nobody else settles anything.
            reconciliation: knows the generation of what a process settles.
            counts: what `SharedCounts` counts, by table.
            now: returns the time in Unix seconds.
        """
        self.limiter = limiter
        self.operations = 0
        self.on_loaded: Callable[[], None] = _nothing
        self._hub = hub
        self._reconciliation = reconciliation
        self._counts = counts
        self._now = now
        self._processes: dict[int, _Process] = {}
        self._held: list[tuple[int, list[Any]]] | None = []
        self._echoes = Echoes()
        #: how many processes use a budget, of those that are not kept for ever
        self._users: dict[tuple[str, str], int] = {}
        #: budgets that nobody uses and that were not idle yet
        self._released: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._page: Sequence[Budget] = ()
        self._soft: deque[Crossed] = deque(maxlen=MOST_SOFT)
        hub.on(LIMITS, list, self._received)
        hub.on(LOAD, list, self._load)
        hub.on(LOADED, type(None), self._loaded)
        hub.answers(IS_LOADED, type(None), lambda message, sender: self._held is None)
        hub.answers(BUDGETS, Page, self._budgets)
        hub.on(TOLD, list[Told], self._told)
        hub.on(SOFT_BUDGET, Crossed, self._crossed)
        hub.answers(USED, list[tuple[str, str]], self._used)
        hub.on_joined(self._joined)
        hub.on_left(self._left)

    def soft_budget_crossed(self, kind: str, id: str, spent: int, soft: int) -> None:
        """Tell the housekeeper that a soft budget was reached."""
        self._crossed(Crossed(kind, id, str(spent), str(soft)), 0)

    def _received(self, operations: list[Any], sender: int) -> None:
        if self._held is not None:
            self._held.append((sender, operations))
            return
        process = self._processes.get(sender)
        if process is None:
            process = self._processes[sender] = _Process()
        self.operations += len(operations)
        now = self._now()
        self.limiter.generation = self._reconciliation.generation_of(sender)
        answers: list[Any] = []
        for operation in operations:
            kind = operation[0]
            try:
                if kind == 0:
                    answers.append(self._admit(process, operation, now))
                elif kind == 1:
                    _, number, tokens, cost, sent = operation
                    reservation = process.reservations.pop(number, None)
                    # an admission that was refused is taken back in vain
                    if reservation is not None:
                        self.limiter.settle(reservation, int(tokens), int(cost), now, sent=sent)
                else:
                    self._do(process, operation, sender, now, answers)
            except Exception:
                self._log.failure("An operation of limits failed")
                if kind in (Operation.ADMIT, Operation.COUNT):
                    answers.append((operation[1], Answer.FAILED))
        if answers:
            self._hub.send(sender, LIMITS, answers)

    def _admit(self, process: _Process, operation: list[Any], now: float) -> tuple[Any, ...]:
        _, number, model, tokens, cost, *named = operation
        subjects = process.subjects
        try:
            reservation = self.limiter.admit([subjects[each] for each in named], model, int(tokens), int(cost), now)
        except (RateLimitExceeded, BudgetExceeded) as error:
            return refusal(number, error)
        process.reservations[number] = reservation
        spend = reservation.key_spend
        return (
            number,
            0,
            wire_state(reservation.requests_left),
            wire_state(reservation.tokens_left),
            None if spend is None else wire(spend),
        )

    def _do(self, process: _Process, operation: list[Any], sender: int, now: float, answers: list[Any]) -> None:
        """Do what is no admission and no settlement."""
        kind, limiter = operation[0], self.limiter
        if kind == Operation.DEFINE:
            _, number, whose, id, allowance = operation
            process.subjects[number] = Limited(whose, id, _allowance(allowance))
        elif kind == Operation.FORGET:
            for number in operation[1:]:
                process.subjects.pop(number, None)
        elif kind == Operation.COUNT:
            _, number, table, name = operation
            answers.append((number, Answer.COUNTED, *self._counts[table].add(name, now)))
        elif kind == Operation.LOADED:
            _, whose, id, spend, start = operation
            if whose == END_USER:
                # the budgets of others are kept for ever
                self._use(process, (whose, id))
            self._load([(whose, id, spend, start)], sender)
        elif kind == Operation.RELEASED:
            self._release(process, (operation[1], operation[2]))
        elif kind == Operation.RESET:
            _, whose, id, spend, start, is_found = operation
            if self._takes((whose, id), is_found, now):
                limiter.budget_reset(whose, id, int(spend), start)
        elif kind == Operation.GONE:
            _, whose, id, is_found = operation
            if self._takes((whose, id), is_found, now):
                self._forget((whose, id))
        elif kind == Operation.COMMITTED:
            _, whose, id, amount, total, start = operation
            limiter.budget_committed(whose, id, int(amount), int(total), start)

    def _takes(self, key: tuple[str, str], is_found: bool, now: float) -> bool:
        """Return whether to take what an administrator did: not if it was told by the process that did it."""
        if is_found:
            return not self._echoes.may_be_echo(key, now)
        self._echoes.done(key, now)
        return True

    def _load(self, budgets: list[Any], sender: int) -> None:
        """Take what a process has read from the database, unless it is known: what was read may be old by now."""
        limiter = self.limiter
        for kind, id, spend, start in budgets:
            if not limiter.budget_is_loaded(kind, id):
                limiter.budget_loaded(kind, id, int(spend), start)

    def _loaded(self, message: None, sender: int) -> None:
        self.on_loaded()
        held, self._held = self._held or [], None
        for number, operations in held:
            self._received(operations, number)

    # who uses a budget

    def _use(self, process: _Process, key: tuple[str, str]) -> None:
        self._released.pop(key, None)
        if key not in process.budgets:
            process.budgets.add(key)
            self._users[key] = self._users.get(key, 0) + 1

    def _release(self, process: _Process, key: tuple[str, str]) -> None:
        if key not in process.budgets:
            return
        process.budgets.remove(key)
        self._use_no_more(key)
        for _ in range(min(_LOOKED_AT_AGAIN, len(self._released))):
            looked_at, _ = self._released.popitem(last=False)
            if not self.limiter.budget_released(*looked_at):
                self._released[looked_at] = None

    def _use_no_more(self, key: tuple[str, str]) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._released[key] = None

    def _forget(self, key: tuple[str, str]) -> None:
        for process in self._processes.values():
            process.budgets.discard(key)
        self._users.pop(key, None)
        self._released.pop(key, None)
        self.limiter.budget_forgotten(*key)

    # processes that begin and end

    def _joined(self, number: int) -> None:
        self._send_soft()

    def _left(self, number: int) -> None:
        if self._held is not None:
            self._held = [each for each in self._held if each[0] != number]
        process = self._processes.pop(number, None)
        if process is None:
            return
        now = self._now()
        for reservation in process.reservations.values():
            # what the server has done by now is not known: the estimate stays counted
            self.limiter.settle(reservation, reservation.tokens, 0, now)
        for key in process.budgets:
            # they are looked at when others are released
            self._use_no_more(key)

    # the housekeeper

    def _crossed(self, crossed: Crossed, sender: int) -> None:
        self._soft.append(crossed)
        self._send_soft()

    def _send_soft(self) -> None:
        housekeeper = next((number for number, slot in self._hub.ready.items() if slot == _HOUSEKEEPER), None)
        while housekeeper is not None and self._soft:
            self._hub.send(housekeeper, SOFT_BUDGET, self._soft.popleft())

    def _budgets(self, page: Page, sender: int) -> list[Known]:
        if not page.first:
            # at once: the pages are not moved by budgets that come and go
            self._page = [each for each in self.limiter.budgets() if each.spent > 0]
        found = self._page[page.first : page.first + page.most]
        if len(found) < page.most:
            self._page = ()
        return [Known(*each.key, str(each.spent), each.start, str(each.told)) for each in found]

    def _used(self, wanted: list[tuple[str, str]], sender: int) -> list[Used]:
        """Return what some have used, in their order."""
        now, limiter = self._now(), self.limiter
        found = []
        for kind, id in wanted:
            budget = limiter.known_budget(kind, id)
            spent, start = (0, -1) if budget is None else (budget.spent, budget.start)
            used = limiter.used(Limited(kind, id, _RATES), "", now)
            found.append(Used(str(spent), start, used["rpm"], used["tpm"]))
        return found

    def _told(self, told: list[Told], sender: int) -> None:
        for each in told:
            self.limiter.budget_told(each.kind, each.id, each.start, int(each.told))


def _nothing() -> None:
    """Do nothing."""
