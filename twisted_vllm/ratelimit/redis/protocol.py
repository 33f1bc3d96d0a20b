"""The commands to Redis for one request, and the meaning of its replies. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, inf

import msgspec

from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.headers import LimitState
from twisted_vllm.ratelimit.memory.counters import REQUEST_LIMITS
from twisted_vllm.ratelimit.refusals import Refusal
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.ratelimit.windows import whole_seconds

#: the prefix of all the gateway's keys in Redis
PREFIX = "vllm-passthrough:"
#: what a Cluster chooses the slot by: one script needs all its keys on one server
CLUSTER_TAG = "vllm-passthrough"
CLUSTER_PREFIX = f"{{{CLUSTER_TAG}}}:"


class Check(msgspec.Struct, frozen=True, gc=False):
    """One counter in Redis that an admission checks.

    Attributes:
        key: its key in Redis.
        type: ``parallel``, ``window`` or ``budget``.
        kind: the kind of the limited subject, as in `Limited`.
        id: its id.
        name: the limit's name, as in `Refusal`.
        limit: the limit; None if the counter only counts.
        needed: the amount that must be left of the limit.
        amount: the amount to count.
        model: the model, for a limit of one model.
        soft: the soft budget.
        period: the start of the budget's period, and its spend in the database.
        ends: when the period ends, in Unix seconds.
    """

    key: str
    type: str
    kind: str
    id: str
    name: str
    limit: int | None
    needed: int = 1
    amount: int = 1
    model: str = ""
    soft: int | None = None
    period: str = ""
    ends: float = inf

    def arguments(self) -> tuple[str, str, str, str, str]:
        """Return its arguments for ``admit.lua``."""
        limit = "" if self.limit is None else str(self.limit)
        return self.type, limit, str(self.needed), str(self.amount), self.period


class Result(msgspec.Struct, frozen=True, gc=False):
    """The result of ``admit.lua`` for one counter.

    Attributes:
        wait: the microseconds until the request fits; 0 means now, -1 never.
        used: the amount used before this request.
        empty: the microseconds until the counter is empty.
        bucket: the bucket that counted the request: a window's bucket, or a budget's period.
    """

    wait: int
    used: int
    empty: int
    bucket: str


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """The settlement of a request, for ``settle.lua``.

    Attributes:
        checks: the counters that change.
        arguments: the process that admitted it, the admission's number, and four arguments per counter.
    """

    checks: list[Check]
    arguments: list[str]

    @property
    def admission(self) -> str:
        """The number of the admission in its process."""
        return self.arguments[1]


class RedisReservation(Reservation):
    """A reservation in Redis.

    Attributes:
        process: the process that made it.
        number: the number of the admission in that process.
        held: each counter, with the bucket that counted the request.
    """

    __slots__ = ("held", "number", "process")

    def __init__(self, process: str, number: int, tokens: int, cost: int, held: list[tuple[Check, str]]) -> None:
        super().__init__(tokens, cost)
        self.process = process
        self.number = number
        self.held = held

    def settlement(self, tokens: int, cost: int, *, sent: bool = True) -> Settlement:
        """Return the settlement; the arguments are those of `LocalLimiter.settle`."""
        checks: list[Check] = []
        arguments = [self.process, str(self.number)]
        difference = tokens - self.tokens
        for check, bucket in self.held:
            if check.type == "parallel":
                arguments += ("parallel", "", "", "")
            elif check.type == "budget":
                soft = "" if check.soft is None else str(check.soft)
                arguments += ("budget", bucket, str(check.amount), f"{cost}/{soft}")
            elif check.name.endswith("tpm") and difference and bucket:
                arguments += ("window", bucket, str(difference), "")
            elif check.name in REQUEST_LIMITS and not sent and bucket:
                arguments += ("window", bucket, "-1", "")
            else:
                continue
            checks.append(check)
        return Settlement(checks, arguments)


def checks_of(
    limited: Sequence[Limited], model: str, tokens: int, cost: int, budget_of: Callable[[Limited], Budget]
) -> list[Check]:
    """Return all counters that an admission checks."""
    found: list[Check] = []
    for subject in limited:
        kind, id, allowance = subject.kind, subject.id, subject.allowance
        found.append(Check(key_of("parallel", kind, id), "parallel", kind, id, "parallel", allowance.parallel))
        if allowance.rpm is not None:
            found.append(Check(key_of("rpm", kind, id), "window", kind, id, "rpm", allowance.rpm))
        if allowance.tpm is not None:
            found.append(Check(key_of("tpm", kind, id), "window", kind, id, "tpm", allowance.tpm, tokens or 1, tokens))
        for name, limits, needed, amount in (
            ("model_rpm", allowance.model_rpm, 1, 1),
            ("model_tpm", allowance.model_tpm, tokens or 1, tokens),
        ):
            if model in limits:
                key = key_of(name, kind, id, model)
                found.append(Check(key, "window", kind, id, name, limits[model], needed, amount, model))
        if allowance.has_budget:
            budget = budget_of(subject)
            found.append(
                Check(
                    key_of("budget", kind, id),
                    "budget",
                    kind,
                    id,
                    "budget",
                    allowance.max_budget,
                    cost or 1,
                    cost,
                    soft=allowance.soft_budget,
                    period=f"{budget.start}/{budget.spent}",
                    ends=budget.ends,
                )
            )
    return found


def key_of(name: str, kind: str, id: str, model: str = "") -> str:
    """Return a counter's key in Redis. An id may contain any character, so its length marks its end."""
    return f"{PREFIX}{name}:{kind}:{len(id)}:{id}{':' if model else ''}{model}"


def in_one_slot(keys: Sequence[str]) -> list[str]:
    """Return the keys of a script as they are called in a Cluster. One without keys needs one to find its server."""
    return [CLUSTER_PREFIX + key.removeprefix(PREFIX) for key in keys] or [CLUSTER_PREFIX]


def read_results(words: Sequence[str]) -> list[Result]:
    """Parse the results of ``admit.lua``."""
    parts = (word.split(",", 3) for word in words)
    return [Result(int(wait), int(used), int(empty), bucket) for wait, used, empty, bucket in parts]


def refusals_of(checks: Sequence[Check], results: Sequence[Result], wall: float) -> list[Refusal]:
    """Return each limit that refused the request."""
    return [
        Refusal(
            check.kind,
            check.name,
            check.limit or 0,
            check.needed,
            _wait(check, result, wall),
            check.model,
            result.used if check.type == "budget" else 0,
        )
        for check, result in zip(checks, results, strict=True)
        if result.wait
    ]


def tightest(
    checks: Sequence[Check], results: Sequence[Result], *, admitted: bool
) -> tuple[LimitState | None, LimitState | None]:
    """Return the limit of requests and the limit of tokens with the least left."""
    found: dict[bool, LimitState] = {}
    for check, result in zip(checks, results, strict=True):
        if check.type == "window" and check.limit is not None:
            of_requests = check.name in REQUEST_LIMITS
            left = check.limit - result.used - (check.amount if admitted else 0)
            current = found.get(of_requests)
            if current is None or left < current[1]:
                found[of_requests] = (check.limit, left, result.empty / 1e6)
    return found.get(True), found.get(False)


def _wait(check: Check, result: Result, wall: float) -> int | None:
    if result.wait < 0:
        return None
    if check.type == "budget":
        return None if check.ends == inf else whole_seconds(check.ends, wall)
    return ceil(result.wait / 1_000_000)
