"""Asks the database for the latest changes before a caller is refused.

Several gateways on one database learn of each other's changes twice a second. A key that was just made must work at
once on all of them, so whoever is about to be refused waits for one question to the database. A question serves all who
wait, and their rate is bounded: guessing keys costs the database no more than `MOST_QUESTIONS` small reads a second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.client_address import client_of
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.identification.waiting_places import WaitingPlaces

#: questions in a second, of all processes of a gateway together
MOST_QUESTIONS = 20
#: questions in a second that one of many processes may ask at least, so that nobody waits long
LEAST_QUESTIONS = 5
#: seconds that a caller waits for an answer; after that it is refused, and so is everybody until the answer has come
QUESTION_SECONDS = 1.0
#: seconds without questions after one that failed
PAUSE_SECONDS = 1.0
#: seconds in which a key that stayed unknown is not asked about again, and how many such keys are remembered
UNKNOWN_SECONDS, MOST_UNKNOWN = 0.5, 4_096


class _Caller:
    """One who waits: for what, and from where."""

    __slots__ = ("address", "answer", "token")

    def __init__(self, token: str | None, address: str | bytes) -> None:
        self.token = token
        self.address = address
        self.answer: Deferred[None] = Deferred()


class Inquiry:
    """Brings the keys in memory up to date for those who are not known.

    Attributes:
        asked: how many questions were asked.
    """

    _log = Logger()

    def __init__(self, catch_up: Callable[[], Deferred[None]], clock: IReactorTime, processes: int = 1) -> None:
        """Make it.

        Args:
            catch_up: applies all that was changed before the call, as `Registry.catch_up`.
            clock: the reactor.
            processes: how many processes of the gateway ask.
        """
        self._interval = 1 / max(MOST_QUESTIONS / processes, LEAST_QUESTIONS)
        self._catch_up = catch_up
        self._clock = clock
        self.asked = 0
        self._waiting: list[_Caller] = []
        self._places = WaitingPlaces()
        self._of_question: list[_Caller] = []
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._running = self._overdue = False
        self._earliest = float("-inf")
        self._paused_until = float("-inf")
        self._next: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"<Inquiry asked={self.asked} waiting={self._places.taken} unknown={len(self._unknown)}>"

    def ask(self, token: str | None, address: str) -> Deferred[None] | None:
        """Ask for the latest changes, together with all others.

        Args:
            token: the SHA-256 of the unknown key; None for a caller who is known and refused, and may be allowed now.
            address: the client's address.

        Returns:
            A Deferred that fires, and never fails, when the caller should be looked up again. None if it makes no
            sense to wait: the key was unknown a moment ago, the database does not answer, or too many wait.
        """
        now, client = self._clock.seconds(), client_of(address)
        if self._overdue or now < self._paused_until:
            return None
        if token is not None and now - self._unknown.get(token, float("-inf")) < UNKNOWN_SECONDS:
            return None
        if not self._places.take(client):
            return None
        caller = _Caller(token, client)
        self._waiting.append(caller)
        self._schedule(now)
        return caller.answer

    def _schedule(self, now: float) -> None:
        if self._running or self._next is not None or not self._waiting:
            return
        if now >= self._earliest:
            self._begin()
        else:
            self._next = self._clock.callLater(self._earliest - now, self._begin)

    def _begin(self) -> None:
        self._next = None
        self._running = True
        self.asked += 1
        self._earliest = self._clock.seconds() + self._interval
        self._of_question, self._waiting = self._waiting, []
        overdue = self._clock.callLater(QUESTION_SECONDS, self._give_up)
        self._catch_up().addBoth(self._answered, overdue)

    def _answered(self, result: object, overdue: IDelayedCall) -> None:
        now = self._clock.seconds()
        self._running = self._overdue = False
        if overdue.active():
            overdue.cancel()
        asked, self._of_question = self._of_question, []
        if isinstance(result, Failure):
            # the database logs its own failures
            if not result.check(StoreUnavailable):
                self._log.failure("The latest changes could not be read for a caller who is not known", result)
            self._paused_until = now + PAUSE_SECONDS
            asked += self._waiting
            self._waiting = []
        else:
            # those that are known now never get here again
            self._remember((caller.token for caller in asked), now)
        self._tell(asked)
        self._schedule(now)

    def _give_up(self) -> None:
        """Refuse all who wait: the database takes too long."""
        self._overdue = True
        callers = [*self._of_question, *self._waiting]
        self._of_question, self._waiting = [], []
        self._tell(callers)

    def _tell(self, callers: list[_Caller]) -> None:
        for caller in callers:
            self._places.leave(caller.address)
        for caller in callers:
            caller.answer.callback(None)

    def _remember(self, tokens: Iterable[str | None], now: float) -> None:
        unknown = self._unknown
        for token in tokens:
            if token is not None:
                unknown[token] = now
                unknown.move_to_end(token)
        while len(unknown) > MOST_UNKNOWN:
            unknown.popitem(last=False)

    def stop(self) -> None:
        """Ask no more; whoever waits is refused. Idempotent."""
        self._overdue = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._give_up()
