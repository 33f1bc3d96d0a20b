"""What Redis is asked for one request, and what its answer means. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, inf

import msgspec

from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.headers import Headers, Standing, limit_headers
from twisted_vllm.ratelimit.memory.counters import REQUEST_LIMITS
from twisted_vllm.ratelimit.refusals import Refusal
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.ratelimit.windows import whole_seconds

#: what every key of the gateway's begins with, in Redis
PREFIX = "vllm-passthrough:"


class Check(msgspec.Struct, frozen=True, gc=False):
    """One key that is looked at.

    Attributes:
        key: its name in Redis.
        sort: ``work``, ``window`` or ``budget``.
        kind: whose limit it is.
        id: likewise.
        name: the limit's name, as in `Refusal`.
        limit: the limit itself; None where the key is only counted.
        needed: what must be left of it.
        amount: what is counted.
        model: the model, for a limit of one model.
        soft: the soft budget.
        period: the start of the budget's period and what is known to be spent in it.
        ends: when that is over, in Unix seconds.
    """

    key: str
    sort: str
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
        """Return what the admission's script is told of it."""
        limit = "" if self.limit is None else str(self.limit)
        return self.sort, limit, str(self.needed), str(self.amount), self.period


class Found(msgspec.Struct, frozen=True, gc=False):
    """What Redis says of one key.

    Attributes:
        wait: the microseconds to wait; 0 is none, -1 for ever.
        used: before this request.
        empty: the microseconds after which all is free again.
        where: where the request was counted.
    """

    wait: int
    used: int
    empty: int
    where: str


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """The end of a request that Redis is to be told.

    Attributes:
        checks: the keys.
        arguments: what the script is told: whose admission, its number, and of each key.
    """

    checks: list[Check]
    arguments: list[str]


class RedisReservation(Reservation):
    """What a request holds in Redis.

    Attributes:
        process: the name it is held under.
        number: the admission's, of that process.
        held: each key, and where in it.
    """

    __slots__ = ("_headers", "held", "number", "process")

    def __init__(
        self, process: str, number: int, tokens: int, cost: int, held: list[tuple[Check, str]], headers: Headers
    ) -> None:
        super().__init__(tokens, cost)
        self.process = process
        self.number = number
        self.held = held
        self._headers = headers

    @property
    def headers(self) -> Headers:
        """See `Reservation.headers`."""
        return self._headers

    def settlement(self, tokens: int, cost: int, *, went_on: bool = True) -> Settlement:
        """Return what is to be settled; the request does not count as one unless it went on."""
        checks: list[Check] = []
        arguments = [self.process, str(self.number)]
        difference = tokens - self.tokens
        for check, where in self.held:
            if check.sort == "work":
                arguments += ("work", "", "", "")
            elif check.sort == "budget":
                soft = "" if check.soft is None else str(check.soft)
                arguments += ("budget", where, str(check.amount), f"{cost}/{soft}")
            elif check.name.endswith("tpm") and difference and where:
                arguments += ("window", where, str(difference), "")
            elif check.name in REQUEST_LIMITS and not went_on and where:
                arguments += ("window", where, "-1", "")
            else:
                continue
            checks.append(check)
        return Settlement(checks, arguments)


def checks_of(
    limited: Sequence[Limited], model: str, tokens: int, cost: int, budget_of: Callable[[Limited], Budget]
) -> list[Check]:
    """Return all that must be looked at for a request."""
    found: list[Check] = []
    for who in limited:
        kind, id, allowance = who.kind, who.id, who.allowance
        found.append(Check(key_of("work", kind, id), "work", kind, id, "parallel", allowance.parallel))
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
        if allowance.max_budget is not None or allowance.soft_budget is not None:
            budget = budget_of(who)
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


def key_of(sort: str, kind: str, id: str, model: str = "") -> str:
    """Return a key's name in Redis. An id may hold any character: its length tells where it ends."""
    return f"{PREFIX}{sort}:{kind}:{len(id)}:{id}{':' if model else ''}{model}"


def read_answer(words: Sequence[str]) -> list[Found]:
    """Return what was said of each key."""
    parts = (word.split(",", 3) for word in words)
    return [Found(int(wait), int(used), int(empty), where) for wait, used, empty, where in parts]


def refusals_of(checks: Sequence[Check], found: Sequence[Found], wall: float) -> list[Refusal]:
    """Return each limit that refused."""
    return [
        Refusal(
            check.kind,
            check.name,
            check.limit or 0,
            check.needed,
            _wait(check, said, wall),
            check.model,
            said.used if check.sort == "budget" else 0,
        )
        for check, said in zip(checks, found, strict=True)
        if said.wait
    ]


def headers_of_answer(checks: Sequence[Check], found: Sequence[Found], *, admitted: bool) -> Headers:
    """Return ``x-ratelimit-*`` of the tightest limits: those of which the least is left."""
    tightest: dict[bool, Standing] = {}
    for check, said in zip(checks, found, strict=True):
        if check.sort == "window" and check.limit is not None:
            requests = check.name.endswith("rpm")
            left = check.limit - said.used - (check.amount if admitted else 0)
            known = tightest.get(requests)
            if known is None or left < known[1]:
                tightest[requests] = (check.limit, left, said.empty / 1e6)
    return limit_headers(tightest.get(True), tightest.get(False))


def _wait(check: Check, said: Found, wall: float) -> int | None:
    if said.wait < 0:
        return None
    if check.sort == "budget":
        return None if check.ends == inf else whole_seconds(check.ends, wall)
    return ceil(said.wait / 1_000_000)
