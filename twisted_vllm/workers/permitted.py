"""A worker's part of the limit on client connections: which it may serve, and which wait for the supervisor's answer.

See `twisted_vllm.workers.permits`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.python.failure import Failure

from twisted_vllm.http.server.connection_limit import ConnectionLimit
from twisted_vllm.workers.permits import (
    ALL,
    ASK,
    BEGIN,
    CLOSED,
    EACH,
    GIVEN,
    GRANTED,
    KEEP,
    RECALL,
    UNLIMITED,
    Ask,
    Began,
    Begin,
    Given,
    Granted,
    Recall,
    read,
    written,
)
from twisted_vllm.workers.siblings import Siblings
from twisted_vllm.workers.topics import NoAnswer

#: an address, from `client_of`; None stands for all connections
Name = str | bytes | None

#: so many connections wait for an answer; while there are more, the ports do not accept
MAX_WAITING = 128


@attrs.define
class _Account:
    """The permits of an address.

    Attributes:
        number: the account's number.
        count: how many permits this process has.
    """

    number: int
    count: int


class PermittedConnections:
    """Says how many connections this process may serve, as `Shares`, and has those wait for which it must ask."""

    def __init__(self, siblings: Siblings, workers: int) -> None:
        """Set up; `reconfigure` says the limits, and `use` what is limited.

        Args:
            siblings: the other processes.
            workers: how many workers there are.
        """
        self._siblings = siblings
        self._workers = workers
        self._limit: ConnectionLimit | None = None
        self._most_of_one = UNLIMITED
        self._total = self._each = 0
        self._keep = UNLIMITED
        self._accounts: dict[Name, _Account] = {}
        self._waiting: dict[Name, deque[tuple[str, Callable[[], None]]]] = {}
        self._paused: list[Any] = []
        siblings.on(GRANTED, Granted, self._granted)
        siblings.on(CLOSED, int, self._closed)
        siblings.on(EACH, int, self._set_each)
        siblings.on(KEEP, int, self._set_keep)
        siblings.answers(RECALL, Recall, self._recall)

    def use(self, limit: ConnectionLimit) -> None:
        """Limit these connections."""
        self._limit = limit

    def reconfigure(self, max_connections: int | None, share: float, own: int | None) -> None:
        """Use other limits from now on; at first as well.

        Args:
            max_connections: the most connections over all workers; None means no limit.
            share: the part of them that one address may have, above 0 and at most 1.
            own: the most that this process has descriptors for; None means no limit.
        """
        most = UNLIMITED if max_connections is None else max_connections
        if own is not None:
            most = min(most, own * self._workers)
        self._most_of_one = most if share == 1 else max(1, int(most * share))
        begin = Begin(most, self._most_of_one, self._workers)
        self._siblings.ask(BEGIN, begin, Began).addCallbacks(self._began, _no_supervisor)

    # what `ConnectionLimit` asks

    @property
    def total(self) -> int:
        """How many connections may be served here."""
        return self._total

    @property
    def most_of_one(self) -> int:
        """How many connections of one address may be served by all workers together."""
        return self._most_of_one

    def of(self, name: str | bytes) -> int:
        """Return how many connections of an address may be served here; `name` is from `client_of`."""
        account = self._accounts.get(name)
        return self._each if account is None else account.count

    def ended(self, name: str | bytes, left: int) -> None:
        """A connection of an address has ended, and so many of the address are left here."""
        if not left:
            account = self._accounts.get(name)
            if account is not None and account.count:
                count, account.count = account.count, 0
                self._siblings.tell(GIVEN, Given(account.number, count))
        if self._total > self._keep:
            self._give_all(min(self._total - self._keep, self._unused()))

    # what ports ask

    def holds(self, port: Any, host: str, serve: Callable[[], None]) -> bool:
        """Have a connection wait until the supervisor has answered, if it must be asked; return whether it waits.

        Args:
            port: where the connection was accepted; it pauses while too many wait.
            host: the client's address, empty if it has none.
            serve: serves or refuses the connection.
        """
        assert self._limit is not None
        lacking = self._limit.lacking(host)
        if not lacking:
            return False
        self._hold(lacking[0], host, serve)
        if port not in self._paused and sum(map(len, self._waiting.values())) >= MAX_WAITING:
            port.stopReading()
            self._paused.append(port)
        return True

    def serve_waiting(self) -> None:
        """Serve or refuse those who wait, as far as permits go: nobody is accepted any more."""
        self._paused.clear()
        for waiting in self._waiting.values():
            while waiting:
                waiting.popleft()[1]()

    def _hold(self, name: Name, host: str, serve: Callable[[], None]) -> None:
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = deque()
            waiting.append((host, serve))
            self._ask(name)
        else:
            waiting.append((host, serve))

    def _ask(self, name: Name) -> None:
        asking = self._siblings.ask(ASK, Ask(written(name), len(self._waiting[name])), int)
        asking.addErrback(_none_granted)
        asking.addCallback(self._answered, name)

    def _answered(self, granted: int, name: Name) -> None:
        """Serve those who waited; those for whom the permits are too few ask again, or are refused."""
        assert self._limit is not None
        waiting = self._waiting.pop(name)
        for host, serve in waiting:
            lacking = self._limit.lacking(host)
            if not lacking or (lacking[0] == name and not granted):
                serve()
            else:
                self._hold(lacking[0], host, serve)
        if self._paused and sum(map(len, self._waiting.values())) < MAX_WAITING:
            paused, self._paused = self._paused, []
            for port in paused:
                if port.connected:
                    port.startReading()

    # what the supervisor says

    def _began(self, began: Began) -> None:
        self._each = began.each
        for number, key in began.accounts:
            self._accounts.setdefault(read(key), _Account(number, 0))

    def _granted(self, granted: Granted, sender: int) -> None:
        if granted.account == ALL:
            self._total += granted.count
        else:
            self._account(granted.account, read(granted.key)).count += granted.count

    def _closed(self, number: int, sender: int) -> None:
        for name, account in list(self._accounts.items()):
            if account.number == number:
                del self._accounts[name]

    def _set_each(self, each: int, sender: int) -> None:
        self._each = each

    def _set_keep(self, keep: int, sender: int) -> None:
        self._keep = keep
        if self._total > keep:
            self._give_all(min(self._total - keep, self._unused()))

    def _recall(self, recall: Recall, sender: int) -> None:
        """Give back what is not used: what is wanted, or half of it if that is more."""
        assert self._limit is not None
        name, wanted = read(recall.key), recall.wanted
        if name is None:
            unused = self._unused()
            if not unused and recall.close_idle and self._limit.make_room_elsewhere(None, wanted):
                unused = self._unused()
            self._give_all(min(unused, max(wanted, unused // 2)))
            return
        account = self._account(recall.account, name)
        unused = account.count - self._limit.connections_of(name)
        if unused <= 0 and recall.close_idle and self._limit.make_room_elsewhere(name, wanted):
            unused = account.count - self._limit.connections_of(name)
        count = min(unused, max(wanted, unused // 2))
        if count > 0:
            account.count -= count
            self._siblings.tell(GIVEN, Given(account.number, count))

    def _unused(self) -> int:
        assert self._limit is not None
        return max(0, self._total - len(self._limit))

    def _give_all(self, count: int) -> None:
        if count > 0:
            self._total -= count
            self._siblings.tell(GIVEN, Given(ALL, count))

    def _account(self, number: int, name: Name) -> _Account:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = _Account(number, self._each)
        return account


def _none_granted(failure: Failure) -> int:
    failure.trap(NoAnswer)
    return 0


def _no_supervisor(failure: Failure) -> None:
    # the process drains: nothing is served any more
    failure.trap(NoAnswer)
