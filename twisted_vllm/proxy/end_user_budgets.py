"""The budgets of end users without limits of their own: any client may name any number of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import Spend
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.ratelimit.allowance import END_USER, KEY, ORGANIZATION, TEAM, USER
from twisted_vllm.ratelimit.interfaces import Limiter

#: end users without limits of their own whose budgets are in memory
MAX_KNOWN = 100_000

#: those whose limits change with their records alone: whoever changes one has the spend set
_WITH_RECORDS = frozenset({KEY, USER, TEAM, ORGANIZATION})

#: reads the spend of end users
ReadSpend = Callable[[Sequence[str]], Deferred[Mapping[str, Spend]]]


def _refuses_not() -> bool:
    """Return that the limiter admits requests: the default of `EndUserBudgets`."""
    return False


class EndUserBudgets:
    """Loads the budget of an end user when a request names it, and forgets the one that was named longest ago.

    One question to the database is in flight at a time; it is for all end users that were named meanwhile. While the
    database does not answer, an end user is held to what it spends from then on.

    Args:
        limiter: has the budgets.
        index: knows who has a record. Their budgets are always in memory.
        read: reads the spend of end users from the database.
        most: the budgets to keep. Those with requests in flight, or with spend that the database does not have yet, are
            kept in any case.
        refuses: whether the limiter refuses everybody at present, so that nobody is asked for.
    """

    def __init__(
        self,
        limiter: Limiter,
        index: KeyIndex,
        read: ReadSpend,
        most: int = MAX_KNOWN,
        refuses: Callable[[], bool] = _refuses_not,
    ) -> None:
        self._limiter = limiter
        self._index = index
        self._read = read
        self._most = most
        self._refuses = refuses
        self._known: OrderedDict[str, None] = OrderedDict()
        self._waiting: dict[str, list[Deferred[None]]] = {}
        self._asked: dict[str, list[Deferred[None]]] = {}

    def __len__(self) -> int:
        """Return the number of end users whose budgets are in memory."""
        return len(self._known)

    def holds(self, kind: str, id: str) -> bool:
        """Return whether the limiter has the budget of somebody, if there is one.

        Without a budget, those with records take no memory. When one of them gets a budget, its spend is set.
        """
        if kind == END_USER:
            return id in self._known or self._index.has_record(id)
        return kind not in _WITH_RECORDS or self._index.allowance_of(kind, id).has_budget

    def forget(self, kind: str, id: str) -> None:
        """Ask again before the next request of an end user: the limiter has its budget no more."""
        if kind == END_USER:
            self._known.pop(id, None)

    def load(self, id: str) -> Deferred[None] | None:
        """Have the budget of an end user without limits of its own in the limiter.

        Returns:
            None if it is there, or makes no difference; else a Deferred that fires when it is. It never fails.
        """
        if id in self._known:
            self._known.move_to_end(id)
            return None
        if self._refuses():
            return None
        loaded: Deferred[None] = Deferred()
        if id in self._asked:
            self._asked[id].append(loaded)
        else:
            self._waiting.setdefault(id, []).append(loaded)
            if not self._asked:
                self._ask()
        return loaded

    def _ask(self) -> None:
        asked, self._waiting = self._waiting, {}
        self._asked = asked

        def found(spends: Mapping[str, Spend]) -> None:
            for id, spend in spends.items():
                self._limiter.budget_loaded(END_USER, id, spend.spend, spend.period_start)
                self._known[id] = None

        def done(_: object) -> None:
            self._asked = {}
            for waiting in asked.values():
                for each in waiting:
                    each.callback(None)
            self._forget()
            if self._waiting and not self._asked:
                self._ask()

        reading = self._read(list(asked))
        reading.addCallbacks(found, _without_database)
        reading.addCallback(done)

    def _forget(self) -> None:
        for _ in range(len(self._known) - self._most):
            id, _ = self._known.popitem(last=False)
            if self._index.has_record(id):
                continue
            if not self._limiter.budget_released(END_USER, id):
                self._known[id] = None


def _without_database(failure: Failure) -> None:
    failure.trap(StoreUnavailable)
