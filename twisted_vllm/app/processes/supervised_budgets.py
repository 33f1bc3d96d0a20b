"""The supervisor's part in the ledger: its limiter's budgets stay exact while the housekeeper writes what was spent."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from twisted_vllm.app.shared.ledger_messages import (
    BEGIN,
    COMMITTED,
    FINISHED,
    LOADED,
    MOST,
    NEEDED,
    POSITION,
    RECONCILED,
    WANTED,
    Budgets,
    Follow,
    Nothing,
    SpoolEnd,
    SpoolEnds,
    Totals,
    Wanted,
)
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.memory.reconciliation import BudgetReconciliation
from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.topics import NoAnswer


class SupervisedBudgets:
    """Tells a limiter what the housekeeper writes.

    Before amounts count, every process is asked: its answer comes after all that it settled before its rows were
    written.

    Attributes:
        reconciliation: knows the generation of what each process settles.
    """

    def __init__(self, hub: Hub, limiter: LocalLimiter) -> None:
        """Listen to the housekeeper.

        Args:
            hub: talks to the processes.
            limiter: has the budgets.
        """
        self.reconciliation = BudgetReconciliation(limiter)
        self._hub = hub
        #: the housekeeper, and its spool
        self._writer: int | None = None
        self._by = ""
        self._round = 0
        hub.answers(BEGIN, Follow, self._begin)
        hub.answers(WANTED, Wanted, self._wanted)
        hub.on(LOADED, Totals, self._loaded)
        hub.on(RECONCILED, Totals, self._reconciled)
        hub.on(FINISHED, Nothing, self._finished)
        hub.on(COMMITTED, Totals, self._committed)
        hub.on_left(self._left)

    def _begin(self, message: Follow, sender: int) -> Deferred[SpoolEnds]:
        """Ask all processes how far their rows are."""
        if sender != self._writer:
            self.reconciliation.writer_left()
            self._writer = sender
        self._by = message.by
        asked = {*self._hub.ready, sender}
        self.reconciliation.begin(asked)
        self._round += 1
        this = self._round

        def answered(ends: dict[int, SpoolEnd] | None) -> SpoolEnds:
            if this != self._round:
                raise NoAnswer("it was asked again")
            if ends is None:
                self.reconciliation.failed()
                raise NoAnswer("a process does not answer")
            return SpoolEnds(list(ends), list(ends.values()))

        return self._ask(asked, this).addCallback(answered)

    def _ask(self, processes: set[int], this: int | None = None) -> Deferred[dict[int, SpoolEnd] | None]:
        """Ask processes how far their rows are.

        Args:
            processes: their numbers.
            this: the round of the reconciliation; None for none.

        Returns:
            The answers of those that have not ended meanwhile; None if one of them does not answer.
        """
        result: Deferred[dict[int, SpoolEnd] | None] = Deferred()
        ends: dict[int, SpoolEnd] = {}
        waiting = set(processes)
        is_late = False

        def done(process: int) -> None:
            waiting.discard(process)
            if not waiting:
                result.callback(None if is_late else ends)

        def answered(end: SpoolEnd, process: int) -> None:
            # at once: what it settles from now on is new
            if this is not None and this == self._round:
                self.reconciliation.answered(process)
            ends[process] = end
            done(process)

        def failed(failure: object, process: int) -> None:
            nonlocal is_late
            is_late = is_late or process in self._hub.connected
            done(process)

        for process in processes:
            asking = self._hub.ask(process, POSITION, Follow(self._by), SpoolEnd)
            asking.addCallbacks(answered, failed, callbackArgs=(process,), errbackArgs=(process,))
        if not processes:
            result.callback(ends)
        return result

    def _wanted(self, message: Wanted, sender: int) -> Budgets:
        return Budgets(self.reconciliation.wanted(message.first, MOST))

    def _loaded(self, message: Totals, sender: int) -> None:
        self.reconciliation.loaded(message.totals)

    def _reconciled(self, message: Totals, sender: int) -> None:
        self.reconciliation.reconciled(message.totals)

    def _finished(self, message: Nothing, sender: int) -> None:
        self.reconciliation.finish()
        if self.reconciliation.is_needed:
            self._hub.send(sender, NEEDED, Nothing())

    def _committed(self, message: Totals, sender: int) -> None:
        asked = set(self._hub.ready)

        def known(ends: dict[int, SpoolEnd] | None) -> None:
            # One that has ended may have rows in it that it has not settled.
            if ends is not None and ends.keys() == asked and sender == self._writer:
                self.reconciliation.committed(message.totals)
                return
            self.reconciliation.uncertain(message.totals)
            if self._writer is not None:
                self._hub.send(self._writer, NEEDED, Nothing())

        self._ask(asked).addCallback(known)

    def _left(self, process: int) -> None:
        if process == self._writer:
            self._writer = None
            self._round += 1
            self.reconciliation.writer_left()
            return
        self.reconciliation.left(process)
        if self._writer is not None and not self.reconciliation.is_running:
            self._hub.send(self._writer, NEEDED, Nothing())
