"""Keeps keys, stored models and drained servers in memory as the store has them, whichever process changes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredLock, inlineCallbacks, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.auth.grants import NO_REVISION, Changes, Snapshot
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import Spend
from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.config.stored_models import StoredModel
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.database import DATABASE_SECONDS
from twisted_vllm.storage.errors import RETRY_SECONDS
from twisted_vllm.storage.interfaces import IStore
from twisted_vllm.storage.transaction import Transaction

T = TypeVar("T")

#: seconds between reads of other processes' changes
FOLLOW_INTERVAL = 0.5
#: changes that may overtake a read of other processes' changes, before such a read makes the next change wait
MAX_OVERTAKING = 3


class Registry:
    """The store, and the key index that requests are checked against.

    The store is written first, then the index: a change applies to every request after its response. Changes run one at
    a time, so that the index gets them in the store's order.

    Args:
        store: stores the keys. index: is updated with every change. spend_set: called when a spend was set, by any
        process. spend_found: called when a subject that has spent something gets a budget, as one whose key another
        process made a moment ago; `spend_set` by default. budget_gone: called with the kind and id of a subject that
        loses its budget or is deleted. read_anew: called when everything was read anew, because the database was
        restored or too much was missed. models_set: called with all stored models when one changed, and at the start.
        drained_set: called with all drained servers, likewise.
        patience: a change that had to wait for longer, in seconds, for earlier ones is not begun. tell_others: has the
        other processes of this gateway read what was changed; a change is over when its Deferred has fired. monotonic:
        seconds, from any start.
    """

    def __init__(
        self,
        store: IStore,
        index: KeyIndex,
        spend_set: Callable[[Spend], None] = lambda spend: None,
        budget_gone: Callable[[str, str], None] = lambda kind, id: None,
        read_anew: Callable[[], None] = lambda: None,
        models_set: Callable[[tuple[StoredModel, ...]], None] = lambda models: None,
        drained_set: Callable[[tuple[DrainedServer, ...]], None] = lambda drained: None,
        *,
        spend_found: Callable[[Spend], None] | None = None,
        patience: float = DATABASE_SECONDS,
        tell_others: Callable[[], Deferred[None]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._index = index
        self._spend_set = spend_set
        self._spend_found = spend_found or spend_set
        self._budget_gone = budget_gone
        self._read_anew = read_anew
        self._models_set = models_set
        self._drained_set = drained_set
        self._tell_others = tell_others
        self._models: dict[str, StoredModel] = {}
        self._drained: dict[str, DrainedServer] = {}
        self.reconfigure(patience)
        self._monotonic = monotonic
        #: entries of the audit log, by what became of them
        self.audited = {"written": 0, "failed": 0}
        #: whether what is applied now was done by another process
        self.is_following = False
        self._lock = DeferredLock()
        self._begun = self._overtaking = 0
        self._revision = NO_REVISION
        #: who waits for the read in progress, and for the one after it; None without one
        self._reading: list[Deferred[None]] | None = None
        #: a read that waits for the change in progress, and goes before the next one
        self._between: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []

    def reconfigure(self, patience: float) -> None:
        """Let changes wait for another time from now on."""
        self._patience = patience

    @property
    def index(self) -> KeyIndex:
        """The key index."""
        return self._index

    def load(self, snapshot: Snapshot) -> None:
        """Fill the index with the store's content, at the start."""
        self._index.replace_all(snapshot)
        self._replace_stored(snapshot)
        self._revision = snapshot.revision

    def read(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Run work that only reads, in another thread."""
        return self._store.read(work)

    def change(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Run work that changes something, after earlier changes, and update the index.

        Raises:
            StoreUnavailable: the database failed, or earlier changes take too long.
        """
        changing = self._lock.run(self._change, work, self._monotonic() + self._patience)
        return changing if self._tell_others is None else changing.addCallback(self._told)

    def _told(self, result: T) -> Deferred[T]:
        assert self._tell_others is not None
        return self._tell_others().addCallback(lambda _: result)

    @inlineCallbacks
    def _change(self, work: Callable[[Transaction], T], latest: float) -> Generator[Deferred[Any], Any, T]:
        try:
            result: T = yield self._change_now(work, latest)
        finally:
            yield self._read_between()
        return result

    @inlineCallbacks
    def _read_between(self) -> Generator[Deferred[Any], Any, None]:
        """Read what others changed for those who wait for it, while no change runs: one read, or until none waits."""
        while (between := self._between) is not None:
            self._between = None
            # whoever waits has the failure, and may ask for the next read at once
            yield self._follow().addBoth(between.callback)
            if self._lock.waiting:
                # the next change does it
                return

    @inlineCallbacks
    def _change_now(self, work: Callable[[Transaction], T], latest: float) -> Generator[Deferred[Any], Any, T]:
        if self._monotonic() > latest:
            self.audited["failed"] += 1
            raise StoreUnavailable(
                "Earlier changes waited too long for the database, so this one was not begun. Try again.",
                retry_after=RETRY_SECONDS,
            )
        self._begun += 1
        audited = 0

        def counted(transaction: Transaction) -> T:
            nonlocal audited
            try:
                return work(transaction)
            finally:
                audited = transaction.audited

        try:
            result, changes = yield self._store.change(counted)
        except StoreUnavailable:
            # a database that is away runs nothing: what was asked would have had an entry at least
            self.audited["failed"] += audited or 1
            raise
        self.audited["written"] += audited
        self._overtaking += 1
        self._apply(changes)
        return result  # type: ignore[no-any-return]  # what a generator is sent has no type

    def follow(self) -> Deferred[None]:
        """Apply what other processes changed since the last call, or wait for the read that does so already.

        The Deferred fails with StoreUnavailable if the database is unavailable.
        """
        if self._reading is not None:
            return _queued(self._reading)
        # Data that was read before a change must not be applied after it. The lock would see to that, but a database
        # that does not answer would then hold back every change, so a read that a change overtook is thrown away.
        if self._overtaking >= MAX_OVERTAKING:
            return self._read(lambda: self._lock.run(self._follow))
        return succeed(None) if self._lock.locked else self._read(self._follow)

    def catch_up(self) -> Deferred[None]:
        """Apply everything that was committed before this call; one read serves all who wait for it.

        A read in progress may have begun too early, so the next one counts. The Deferred fails as that of `follow`.
        """
        if self._reading is None:
            return self._read(self._follow_surely)
        return _queued(self._waiting)

    def _read(self, read: Callable[[], Deferred[bool]]) -> Deferred[None]:
        """Begin a read for one who asks."""
        waiting: list[Deferred[None]] = []
        mine = _queued(waiting)
        self._read_for(waiting, read)
        return mine

    def _read_for(self, waiting: list[Deferred[None]], read: Callable[[], Deferred[bool]]) -> None:
        self._reading = waiting
        read().addBoth(self._have_read)

    def _have_read(self, result: bool | Failure) -> None:
        reading, self._reading = self._reading or [], None
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._read_for(waiting, self._follow_surely)
        for each in reading:
            if isinstance(result, Failure):
                each.errback(result)
            else:
                each.callback(None)

    @inlineCallbacks
    def _follow_surely(self) -> Generator[Deferred[Any], Any, bool]:
        """Follow, behind the change in progress if need be, and before those that wait."""
        if not self._lock.locked and (yield self._follow()):
            return True
        if self._lock.locked:
            self._between = between = Deferred[None]()
            yield between
        else:
            yield self._lock.run(self._follow)
        return True

    @inlineCallbacks
    def _follow(self) -> Generator[Deferred[Any], Any, bool]:
        """Return whether what was read was applied: not if a change overtook it."""
        begun = self._begun
        spends: list[Spend] = []
        revision, update = yield self._store.changes_since(self._revision)
        if isinstance(update, Snapshot):
            spends = yield self._store.spend()
        if self._begun != begun:
            return False
        self._overtaking = 0
        self.is_following = True
        try:
            self._apply_others(update, spends)
        finally:
            self.is_following = False
        self._revision = revision
        return True

    def _apply_others(self, update: Changes | Snapshot | None, spends: list[Spend]) -> None:
        """Apply what other processes did, with all spend if everything was read anew."""
        if isinstance(update, Changes):
            self._apply(update)
        elif update is not None:
            before = self._index.budgets()
            self._index.replace_all(update)
            still = self._index.budgets() & {(spend.kind, spend.id) for spend in spends}
            for kind, id in before - still:
                self._budget_gone(kind, id)
            self._replace_stored(update)
            for spend in spends:
                self._spend_set(spend)
            self._read_anew()

    def _replace_stored(self, snapshot: Snapshot) -> None:
        self._models = dict(snapshot.models)
        self._models_set(tuple(self._models.values()))
        self._drained = dict(snapshot.drained)
        self._drained_set(tuple(self._drained.values()))

    def _apply(self, changes: Changes) -> None:
        before, after = self._index.before(changes).budgets_within(), changes.budgets_within()
        self._index.apply(changes)
        if changes.models:
            for name, model in changes.models.items():
                self._models.pop(name, None)
                if model is not None:
                    self._models[name] = model
            self._models_set(tuple(self._models.values()))
        for url, drained in changes.drained.items():
            self._drained.pop(url, None)
            if drained is not None:
                self._drained[url] = drained
        if changes.drained:
            self._drained_set(tuple(self._drained.values()))
        for kind, id in before - after:
            self._budget_gone(kind, id)
        for spend in changes.budgets:
            if (spend.kind, spend.id) not in before:
                self._spend_found(spend)
        for spend in changes.spend:
            self._spend_set(spend)


def _queued(waiting: list[Deferred[None]]) -> Deferred[None]:
    mine: Deferred[None] = Deferred()
    waiting.append(mine)
    return mine


class ChangeFollower:
    """Lets a registry follow other processes' changes, from `start` to `stop`."""

    _log = Logger()

    def __init__(self, registry: Registry, clock: IReactorTime) -> None:
        self._registry = registry
        self._looping = LoopingCall(self._follow)
        self._looping.clock = clock

    def start(self) -> None:
        """Start; the first read is after `FOLLOW_INTERVAL`."""
        self._looping.start(FOLLOW_INTERVAL, now=False)

    def stop(self) -> None:
        """Stop reading. Idempotent."""
        if self._looping.running:
            self._looping.stop()

    def _follow(self) -> Deferred[None]:
        return self._registry.follow().addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        # The database logs its own failures. After any failure the next turn retries.
        if not failure.check(StoreUnavailable):
            self._log.failure("The changes of other processes could not be read", failure)
