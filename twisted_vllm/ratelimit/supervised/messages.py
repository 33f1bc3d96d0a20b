"""What workers ask the limiter in the supervisor, and what it answers.

All that a worker asks and tells in one turn is one message: a list of operations, each of which is a list that begins
with its `Operation`. The answers of a turn are one message too. Subjects are sent once and named by numbers afterwards,
so an admission is a few small integers. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred

from twisted_vllm.errors import BudgetExceeded, LimitsUnavailable, RateLimitExceeded
from twisted_vllm.ratelimit.headers import LimitState

M = TypeVar("M")
T = TypeVar("T")

#: the topic of operations and of their answers
LIMITS = "limits"
#: of the budgets that the housekeeper has read at the start, and of the question whether they are wanted
LOAD, IS_LOADED, LOADED = "limits.load", "limits.is_loaded", "limits.loaded"
#: of the question what is used of limits: a list of kinds and ids
USED = "limits.used"
#: of a soft budget that was reached: to the supervisor if Redis counts, and from it to the housekeeper
SOFT_BUDGET = "limits.soft_budget"
#: of the budgets in memory for the housekeeper, and of what it has told about them
BUDGETS, TOLD = "limits.budgets", "limits.told"

_MOST = 2**63


class Operation:
    """What a worker wants, an integer; the words behind it are those of the operation."""

    #: number, model, tokens, cost, the numbers of the subjects: admit a request
    ADMIT = 0
    #: number, tokens, cost, whether it was sent: settle a request
    SETTLE = 1
    #: number, kind, id, allowance in JSON: a subject is named by this number from now on
    DEFINE = 2
    #: numbers: these subjects are not named any more
    FORGET = 3
    #: number, table, name: count one in a table of `COUNTED`
    COUNT = 4
    #: kind, id, spend, start of the period: a budget as it stands in the database; this worker uses it from now on
    LOADED = 5
    #: kind, id: this worker uses a budget no more
    RELEASED = 6
    #: kind, id, spend, start of the period, whether it was found in the database: an administrator set what was spent
    RESET = 7
    #: kind, id, whether it was found in the database: a budget is no more
    GONE = 8
    #: kind, id, amount, total, start of the period: the database has more of what was settled
    COMMITTED = 9


class Answer:
    """The answer to an operation, an integer; before it stands the operation's number."""

    #: requests left, tokens left, the key's spend
    ADMITTED = 0
    #: of an admission: the index of the error's class in `ERRORS`, message, retry_after, param, limit headers
    REFUSED = 1
    #: the count, and the seconds until it begins anew
    COUNTED = 2
    #: the supervisor could not do it, and has logged why
    FAILED = 3


#: the errors with which an admission fails
ERRORS = (RateLimitExceeded, BudgetExceeded)


class Table:
    """The counts that workers share, each a table of names."""

    FAILURES = 0
    READS = 1
    PREFLIGHTS = 2
    CHANGES_OF_MINUTE = 3
    CHANGES_OF_DAY = 4


class Crossed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A soft budget was reached; the attributes are the arguments of `SoftBudgetCrossed`, integers as text."""

    kind: str
    id: str
    spent: str
    soft: str


class Page(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A question for some of the budgets in memory.

    Attributes:
        first: how many were answered before; 0 begins anew.
        most: the maximum number.
    """

    first: int
    most: int


class Known(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A budget in memory; the attributes are those of `Budget`, integers of any size as text."""

    kind: str
    id: str
    spent: str
    start: int
    told: str


class Used(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What somebody has used.

    Attributes:
        spent: of the budget, in picodollars, as text.
        start: when the budget's period began; -1 if it never did, or there is none.
        requests: in the last 60 seconds.
        tokens: likewise.
    """

    spent: str
    start: int
    requests: int
    tokens: int


class Told(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Up to which spend it was told which share of a budget is used, in the period that began at `start`."""

    kind: str
    id: str
    start: int
    told: str


class Speaks(Protocol):
    """How a worker talks to the supervisor; `Siblings` says more."""

    def tell(self, topic: str, message: Any) -> None:
        """Send a message to the supervisor."""

    def ask(self, topic: str, message: Any, answer: type[T]) -> Deferred[T]:
        """Ask the supervisor."""

    def on(self, topic: str, kind: type[M], handler: Callable[[M, int], None]) -> None:
        """Have a handler called with each message of a topic."""


def wire(number: int) -> int | str:
    """Return an integer for a message, which has no more than 64 bits for one; `int` reads it."""
    return number if -_MOST <= number < _MOST else str(number)


def wire_state(state: LimitState | None) -> tuple[int | str, int | str, float] | None:
    """Return the state of a limit for a message."""
    return None if state is None else (wire(state[0]), wire(state[1]), state[2])


def state_of(words: Sequence[Any] | None) -> LimitState | None:
    """Return the state of a limit that `wire_state` made."""
    return None if words is None else (int(words[0]), int(words[1]), float(words[2]))


def refusal(number: int, error: RateLimitExceeded | BudgetExceeded) -> tuple[Any, ...]:
    """Return the answer to an admission that was refused."""
    headers = error.limit_headers if isinstance(error, RateLimitExceeded) else ()
    retry_after = None if error.retry_after is None else wire(error.retry_after)
    return number, Answer.REFUSED, ERRORS.index(type(error)), error.message, retry_after, error.param, headers


def error_of(words: Sequence[Any]) -> RateLimitExceeded | BudgetExceeded:
    """Return the error of the words that follow `Answer.REFUSED`."""
    which, message, retry_after, param, headers = words
    wait = None if retry_after is None else int(retry_after)
    if ERRORS[which] is BudgetExceeded:
        return BudgetExceeded(message, param=param, retry_after=wait)
    found = [(bytes(name), bytes(value)) for name, value in headers]
    return RateLimitExceeded(message, param=param, retry_after=wait, limit_headers=found)


def unavailable() -> LimitsUnavailable:
    """Return the error of a request whose limits cannot be counted."""
    return LimitsUnavailable("The limits of this key cannot be counted at present. Try again.", retry_after=1)
