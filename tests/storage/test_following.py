from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from tests.storage.memory_database import MemoryDatabase
from tests.storage.store_contract import CREATED, key_record, put, token
from twisted_vllm.auth.grants import EndUser, Revision
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.storage.records import EndUserRecord, TeamRecord, UserRecord
from twisted_vllm.storage.registry import FOLLOW_INTERVAL, ChangeFollower, Registry
from twisted_vllm.storage.store import Store


class FailingStore(Store):
    """A store that cannot tell what changed for as long as it has an error."""

    error: Exception | None = None

    def changes_since(self, revision: Revision) -> Deferred[Any]:
        return super().changes_since(revision) if self.error is None else fail(self.error)


def following() -> tuple[Clock, FailingStore, Registry, ChangeFollower]:
    store = FailingStore(MemoryDatabase())
    registry, clock = Registry(store, KeyIndex()), Clock()
    follower = ChangeFollower(registry, clock)
    follower.start()
    return clock, store, registry, follower


def limited(registry: Registry) -> tuple[Limited, ...]:
    """Return the limits of the first key, as requests see them."""
    found = registry.index.find(token(1))
    assert found is not None
    return found.principal.limited


def test_what_changed_is_known_after_the_interval() -> None:
    clock, store, registry, follower = following()
    put(store, key_record(1))
    assert token(1) not in registry.index
    clock.advance(FOLLOW_INTERVAL)
    assert token(1) in registry.index
    follower.stop()
    follower.stop()
    assert clock.getDelayedCalls() == []


def test_limits_and_end_users_that_another_process_changed_are_known_within_a_second() -> None:
    clock, store, registry, follower = following()
    allowance = Allowance(rpm=5, max_budget=10**12)
    put(store, key_record(1, user_id="ada", team_id="x"))
    clock.advance(FOLLOW_INTERVAL)
    assert limited(registry) == ()

    def limit(transaction: Any) -> None:
        transaction.keys.replace(token(1), key_record(1, user_id="ada", team_id="x", allowance=allowance))
        transaction.users.insert(UserRecord(user_id="ada", allowance=allowance, **CREATED))
        transaction.teams.insert(TeamRecord(team_id="x", allowance=allowance, **CREATED))
        transaction.end_users.insert(EndUserRecord(user_id="eve", blocked=True, allowance=allowance, **CREATED))

    store.change(limit)
    assert registry.index.end_user("eve") is None
    assert FOLLOW_INTERVAL < 1
    clock.advance(FOLLOW_INTERVAL)
    assert [(each.kind, each.allowance) for each in limited(registry)] == [
        ("key", allowance),
        ("user", allowance),
        ("team", allowance),
    ]
    assert registry.index.end_user("eve") == EndUser(Limited("end_user", "eve", allowance), blocked=True)
    store.change(lambda transaction: transaction.end_users.delete(["eve"]))
    clock.advance(FOLLOW_INTERVAL)
    assert registry.index.end_user("eve") is None
    follower.stop()


def test_a_failure_does_not_end_it(logged_failures: Any) -> None:
    clock, store, registry, follower = following()
    for error in (StoreUnavailable("away"), ZeroDivisionError()):
        store.error = error
        clock.advance(FOLLOW_INTERVAL)
    assert [failure.type for failure in logged_failures.flush()] == [ZeroDivisionError]
    store.error = None
    put(store, key_record(1))
    clock.advance(FOLLOW_INTERVAL)
    assert token(1) in registry.index
    follower.stop()
