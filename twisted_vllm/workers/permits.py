"""Shares out client connections among the workers: a connection needs a permit, and there are as many as the limit.

Each worker has permits in stock, and asks the supervisor when it runs short. The supervisor gives what is left, then
what other workers do not use, and then what they can spare by closing idle connections. So there are never more
connections than the limit, and none is refused while there is a permit anywhere.

The limit of one address is counted in the same way, in an account of the address. Until a worker asks, an address has
no account: each worker may serve a few of its connections (`Began.each`) without asking.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, DeferredList

from twisted_vllm.workers.hub import Hub

#: a worker to the supervisor
BEGIN, ASK, GIVEN = "permits.begin", "permits.ask", "permits.given"
#: the supervisor to a worker
GRANTED, RECALL, CLOSED, EACH, KEEP = (
    "permits.granted",
    "permits.recall",
    "permits.closed",
    "permits.each",
    "permits.keep",
)

#: no limit
UNLIMITED = sys.maxsize
#: the number of the account of all connections
ALL = 0

#: seconds that a worker may take to give back what it does not use
RECALL_SECONDS = 0.5

#: an address as `written` says; None stands for all connections
Key = str | None


def written(name: str | bytes | None) -> Key:
    """Return the key of an address that `client_of` named: text, also for an IPv6 network."""
    return name if name is None or isinstance(name, str) else f"/64 {name.hex()}"


def read(key: Key) -> str | bytes | None:
    """Return the address of a key, as `client_of` names it."""
    return key if key is None or not key.startswith("/64 ") else bytes.fromhex(key[4:])


class Begin(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the settings say.

    Attributes:
        most: the most connections over all workers.
        most_of_one: the most of one address over all workers.
        workers: how many workers there are.
    """

    most: int
    most_of_one: int
    workers: int


class Began(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a worker has at first.

    Attributes:
        each: how many connections of an address without an account it may serve.
        accounts: the accounts of addresses, of which it has no permits.
    """

    each: int
    accounts: list[tuple[int, Key]]


class Ask(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The sender needs permits; the answer is how many were granted.

    Attributes:
        key: of what.
        wanted: how many connections wait for one.
    """

    key: Key
    wanted: int


class Granted(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The receiver has more permits.

    Attributes:
        account: the number of the account.
        key: of what.
        count: how many more.
    """

    account: int
    key: Key
    count: int


class Recall(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The receiver is to give back permits; it answers when it has.

    Attributes:
        account: the number of the account.
        key: of what.
        wanted: how many are needed.
        close_idle: whether to close idle connections for them.
    """

    account: int
    key: Key
    wanted: int
    close_idle: bool


class Given(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The sender has fewer permits.

    Attributes:
        account: the number of the account.
        count: how many fewer.
    """

    account: int
    count: int


@attrs.define(eq=False)
class _Account:
    """The permits of one address, or of all connections.

    Attributes:
        number: its number, which no other account had.
        key: whose it is.
        most: how many permits there are.
        held: how many each process has.
        waiting: who asked and has no answer yet: the process, how many it wants, and the answer.
        recalling: whether others are being asked for what they do not use.
    """

    number: int
    key: Key
    most: int
    held: dict[int, int]
    waiting: deque[tuple[int, int, Deferred[int]]] = attrs.field(factory=deque)
    recalling: bool = False

    @property
    def free(self) -> int:
        """How many permits nobody has; below 0 after the limit was lowered."""
        return self.most - sum(self.held.values())


class ConnectionPermits:
    """The supervisor's part: it has the permits that no worker has.

    Attributes:
        accounts: how many addresses have an account.
    """

    def __init__(self, hub: Hub) -> None:
        """Answer the workers of a hub."""
        self._hub = hub
        self._limits: Begin | None = None
        self._all = _Account(ALL, None, 0, {})
        self._addresses: dict[Key, _Account] = {}
        self._by_number: dict[int, _Account] = {ALL: self._all}
        self._each: dict[int, int] = {}
        self._number = ALL
        self._limiting = False
        hub.answers(BEGIN, Begin, self._begin)
        hub.answers(ASK, Ask, self._ask)
        hub.on(GIVEN, Given, self._given)
        hub.on_left(self._left)

    @property
    def accounts(self) -> int:
        """The number of addresses with an account."""
        return len(self._addresses)

    # what workers say

    def _begin(self, limits: Begin, process: int) -> Began:
        if limits != self._limits:
            self._set(limits)
        if process not in self._each:
            self._all.held[process] = 0
            for account in self._addresses.values():
                account.held[process] = 0
            self._each[process] = self._each_of_new(self._each.values())
        accounts = [(account.number, account.key) for account in self._addresses.values()]
        return Began(self._each[process], accounts)

    def _ask(self, question: Ask, process: int) -> Deferred[int]:
        key = question.key
        account = self._all if key is None else self._addresses.get(key)
        if account is None:
            account = self._open(key)
        answer: Deferred[int] = Deferred()
        account.waiting.append((process, question.wanted, answer))
        self._serve(account)
        return answer

    def _given(self, given: Given, process: int) -> None:
        account = self._by_number.get(given.account)
        if account is not None and process in account.held:
            account.held[process] = max(0, account.held[process] - given.count)
            self._serve(account)
            self._close_unused(account)
            self._end_limiting()

    def _left(self, process: int) -> None:
        self._each.pop(process, None)
        for account in list(self._by_number.values()):
            account.held.pop(process, None)
            self._serve(account)
            self._close_unused(account)
        self._end_limiting()

    # limits

    def _set(self, limits: Begin) -> None:
        self._limits = limits
        self._all.most = limits.most
        for account in self._addresses.values():
            account.most = limits.most_of_one
        each: dict[int, int] = {}
        for process in self._each:
            each[process] = self._each_of_new(each.values())
            self._hub.send(process, EACH, each[process])
        self._each = each
        held = sum(self._all.held.values())
        if held > limits.most:
            # as their connections end, workers give back what is too much
            self._limiting = True
            for process, count in self._all.held.items():
                self._hub.send(process, KEEP, count * limits.most // held)
        else:
            self._end_limiting()

    def _end_limiting(self) -> None:
        if self._limiting and self._all.free >= 0:
            self._limiting = False
            for process in self._all.held:
                self._hub.send(process, KEEP, UNLIMITED)

    def _each_of_new(self, others: Iterable[int]) -> int:
        """Return how many connections of any address one more process may serve without asking."""
        limits = self._limits
        if limits is None or limits.most_of_one >= limits.most:
            return UNLIMITED
        # while workers are replaced there are twice as many, and half of the permits stays here
        fair = max(1, limits.most_of_one // (4 * limits.workers))
        return max(0, min(fair, limits.most_of_one - sum(each for each in others if each != UNLIMITED)))

    # accounts

    def _open(self, key: Key) -> _Account:
        self._number += 1
        most = 0 if self._limits is None else self._limits.most_of_one
        account = _Account(self._number, key, most, dict(self._each))
        self._addresses[key] = self._by_number[account.number] = account
        return account

    def _close_unused(self, account: _Account) -> None:
        """Close an account when each worker can do without asking again."""
        if account is self._all or account.waiting or account.recalling:
            return
        if all(held <= self._each.get(process, 0) for process, held in account.held.items()):
            del self._addresses[account.key], self._by_number[account.number]
            for process in account.held:
                self._hub.send(process, CLOSED, account.number)

    # permits

    def _serve(self, account: _Account) -> None:
        """Answer those who wait from what is free, and have more given back for the others."""
        waiting = account.waiting
        while waiting and account.free > 0:
            process, wanted, answer = waiting.popleft()
            count = self._grant(account, process, wanted)
            answer.callback(count)
        if waiting and not account.recalling:
            self._recall(account, close_idle=False)

    def _grant(self, account: _Account, process: int, wanted: int) -> int:
        if process not in account.held:
            return 0
        some = account.most // (8 * len(account.held))
        count = min(account.free, max(wanted, some))
        account.held[process] += count
        # a message before the answer: it counts also if the answer comes too late
        self._hub.send(process, GRANTED, Granted(account.number, account.key, count))
        return count

    def _recall(self, account: _Account, *, close_idle: bool) -> None:
        asking = {process for process, _, _ in account.waiting}
        wanted = sum(wanted for _, wanted, _ in account.waiting)
        question = Recall(account.number, account.key, wanted, close_idle)
        asked = [process for process, held in account.held.items() if held and process not in asking]
        account.recalling = True
        answers = [self._hub.ask(process, RECALL, question, type(None), RECALL_SECONDS) for process in asked]
        DeferredList(answers, consumeErrors=True).addCallback(self._recalled, account, close_idle)

    def _recalled(self, _: Any, account: _Account, close_idle: bool) -> None:
        if account.waiting and not close_idle:
            self._recall(account, close_idle=True)
            return
        account.recalling = False
        waiting, account.waiting = account.waiting, deque()
        for _process, _wanted, answer in waiting:
            answer.callback(0)
        self._close_unused(account)
