"""Keys in the database and keys in memory, kept alike."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredLock, inlineCallbacks

from twisted_vllm.auth.grants import Changes, Everything
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import Spend
from twisted_vllm.storage.interfaces import IStore
from twisted_vllm.storage.transaction import Transaction

T = TypeVar("T")


class Registry:
    """The store, and the index that requests are checked against.

    The store is written first, then the index: a key works, or does not any more, on the request after the answer.
    One change runs at a time, so that the index sees the changes in the store's order.

    Args:
        store: where keys are kept.
        index: what is told of every change.
        spend_set: is told of each whose spend was set anew, here or in another process, or who spent something and then
            got a budget.
        budget_gone: is told the kind and id of each whose budget was taken away, or who is not there any more.
    """

    def __init__(
        self,
        store: IStore,
        index: KeyIndex,
        spend_set: Callable[[Spend], None] = lambda spend: None,
        budget_gone: Callable[[str, str], None] = lambda kind, id: None,
    ) -> None:
        self._store = store
        self._index = index
        self._spend_set = spend_set
        self._budget_gone = budget_gone
        self._lock = DeferredLock()
        self._revision = 0

    @property
    def index(self) -> KeyIndex:
        """The keys that requests are checked against."""
        return self._index

    def take(self, everything: Everything) -> None:
        """Fill the index with what the store holds, at the start."""
        self._index.replace_all(everything)
        self._revision = everything.revision

    def read(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Do work that only reads, in another thread."""
        return self._store.read(work)

    def change(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Do work that changes something, when its turn comes, and tell the index."""
        return self._lock.run(self._change, work)

    @inlineCallbacks
    def _change(self, work: Callable[[Transaction], T]) -> Generator[Deferred[Any], Any, T]:
        result, changes = yield self._store.change(work)
        self._apply(changes)
        return result  # type: ignore[no-any-return]  # what a generator is sent has no type

    def follow(self) -> Deferred[None]:
        """Take what other processes changed in the same database since the last time.

        The Deferred fails with StoreUnavailable where the database does not answer.
        """
        # In turn with the changes: what was read before a change must not be applied after it.
        return self._lock.run(self._follow)

    @inlineCallbacks
    def _follow(self) -> Generator[Deferred[Any], Any, None]:
        revision, news = yield self._store.news(self._revision)
        if isinstance(news, Changes):
            self._apply(news)
        elif news is not None:
            self._index.replace_all(news)
            for spend in (yield self._store.spend()):
                self._spend_set(spend)
        self._revision = revision

    def _apply(self, changes: Changes) -> None:
        before, after = self._index.before(changes).budgets_within(), changes.budgets_within()
        self._index.apply(changes)
        for kind, id in before - after:
            self._budget_gone(kind, id)
        for spend in changes.budgets:
            if (spend.kind, spend.id) not in before:
                self._spend_set(spend)
        for spend in changes.spend:
            self._spend_set(spend)
