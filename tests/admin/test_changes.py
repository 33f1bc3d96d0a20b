"""A change goes to the store, then to the index, then to the client; and it ends, whoever waits for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers

from tests.admin.admin_harness import MASTER_KEY, Gateway, HeldStore
from twisted_vllm.admin.context import DATABASE_TIMEOUT
from twisted_vllm.errors import StoreUnavailable

KEY = "sk-custom-0123456789"


@pytest.fixture
def store() -> HeldStore:
    return HeldStore()


@pytest.fixture
def held(store: HeldStore) -> Gateway:
    return Gateway(store)


def begin(gateway: Gateway, path: str, body: object) -> tuple[Any, list[Any], Deferred[Any]]:
    """Send a request that the store will answer later."""
    # StubTreq makes its methods when it is made.
    treq: Any = StubTreq(gateway.recorded)
    answers: list[Any] = []
    headers = Headers({"Authorization": [f"Bearer {MASTER_KEY}"]})
    sent: Deferred[Any] = treq.request("POST", f"http://gateway{path}", headers=headers, data=json.dumps(body).encode())
    sent.addBoth(answers.append)
    return treq, answers, sent


def leave(gateway: Gateway) -> None:
    """Let the client of the last request go away."""
    gateway.recorded.requests[-1].channel.transport.loseConnection()
    gateway.recorded.requests[-1].connectionLost(ConnectionError("gone"))


def status_with(gateway: Gateway, key: str) -> int:
    return gateway.get("/key/info", key=key).status


def test_a_key_works_once_the_store_has_it_and_not_before(held: Gateway, store: HeldStore) -> None:
    treq, answers, _ = begin(held, "/key/generate", {"key": KEY})
    assert status_with(held, KEY) == 401
    assert not answers
    store.release()
    assert status_with(held, KEY) == 200
    treq.flush()
    assert answers[0].code == 200


def test_a_key_works_until_the_store_has_deleted_it(held: Gateway, store: HeldStore) -> None:
    begin(held, "/key/generate", {"key": KEY})
    store.release()
    treq, answers, _ = begin(held, "/key/delete", {"keys": [KEY]})
    assert status_with(held, KEY) == 200
    store.release()
    treq.flush()
    assert answers[0].code == 200
    assert status_with(held, KEY) == 401


def test_a_store_that_fails_changes_nothing(held: Gateway, store: HeldStore) -> None:
    treq, answers, _ = begin(held, "/key/generate", {"key": KEY})
    store.refuse(StoreUnavailable("no", retry_after=5))
    treq.flush()
    assert answers[0].code == 503
    assert answers[0].headers.getRawHeaders("retry-after") == ["5"]
    assert status_with(held, KEY) == 401

    begin(held, "/key/generate", {"key": KEY})
    store.release()
    treq, answers, _ = begin(held, "/key/delete", {"keys": [KEY]})
    store.refuse(StoreUnavailable("no"))
    treq.flush()
    assert answers[0].code == 503
    assert status_with(held, KEY) == 200


def test_a_client_that_goes_away_does_not_stop_what_it_began(held: Gateway, store: HeldStore) -> None:
    begin(held, "/key/generate", {"key": KEY})
    leave(held)
    store.release()
    assert [record.token in held.index for record in held.records()] == [True]
    assert status_with(held, KEY) == 200

    begin(held, "/key/delete", {"keys": [KEY]})
    leave(held)
    store.release()
    assert status_with(held, KEY) == 401
    assert held.records() == []


def test_what_fails_after_its_client_has_gone_is_logged_if_it_was_not_foreseen(
    held: Gateway, store: HeldStore, logged_failures: Any
) -> None:
    begin(held, "/key/generate", {"key": KEY})
    leave(held)
    store.refuse(StoreUnavailable("no"))
    assert logged_failures.flush() == []
    begin(held, "/key/generate", {"key": KEY})
    leave(held)
    store.refuse(ZeroDivisionError())
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


def test_changes_are_made_one_after_the_other(held: Gateway, store: HeldStore) -> None:
    begin(held, "/key/generate", {"key": KEY})
    treq, answers, _ = begin(held, "/key/delete", {"keys": [KEY]})
    again, others, _ = begin(held, "/key/generate", {"key": KEY})
    assert len(store.held) == 1
    for _ in range(3):
        store.release()
    treq.flush()
    again.flush()
    assert (answers[0].code, others[0].code) == (200, 200)
    assert status_with(held, KEY) == 200
    assert len(held.records()) == 1


def test_a_store_that_hangs_is_not_waited_for_without_end(held: Gateway, store: HeldStore) -> None:
    treq, answers, _ = begin(held, "/key/generate", {"key": KEY})
    held.clock.advance(DATABASE_TIMEOUT - 1)
    treq.flush()
    assert not answers
    held.clock.advance(1)
    treq.flush()
    assert answers[0].code == 503
    store.release()
    assert status_with(held, KEY) == 200
