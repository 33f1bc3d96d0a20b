"""What guessing keys could be used for beside guessing: learning from a refusal's time, filling memory, asking the
database."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Iterator
from ipaddress import IPv4Address
from statistics import median

import pytest

from twisted_vllm.auth.authenticator import Authenticator, hash_key
from twisted_vllm.auth.grants import KeyGrant, Snapshot, TeamGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import BlockedApiKey, ExpiredApiKey, GatewayError, InvalidApiKey, MissingApiKey
from twisted_vllm.ratelimit.minute_counts import MOST_NAMES

NOW = 1_000_000.0
KEYS = 1_000
UNKNOWN = 100_000

#: how much longer one refusal's median may take than another's: they do the same, but for what they say
FACTOR = 2.0


def key(kind: str, number: int) -> str:
    return f"sk-{kind}-{number:040d}"


def grant(kind: str, number: int) -> KeyGrant:
    token = hash_key(key(kind, number))
    return KeyGrant(
        token,
        token[:32],
        "sk-...0000",
        expires=NOW - 1 if kind == "expired" else float("inf"),
        blocked=kind == "blocked",
        team_id="x" if kind == "team" else None,
    )


@pytest.fixture
def index() -> KeyIndex:
    found = KeyIndex()
    found.replace_all(
        Snapshot(
            keys=[grant(kind, number) for kind in ("blocked", "expired", "team", "valid") for number in range(KEYS)],
            teams={"x": TeamGrant(blocked=True)},
        )
    )
    return found


@pytest.fixture
def authenticator(index: KeyIndex) -> Authenticator:
    return Authenticator(Secret("sk-master-0123456789"), index)


def refusal(
    authenticator: Authenticator, failures: AuthenticationThrottle, presented: str, address: str
) -> GatewayError:
    try:
        authenticator.authenticate({b"authorization": b"Bearer " + presented.encode()}, NOW)
    except MissingApiKey as error:
        found = failures.record_failure(error, address, NOW)
        assert isinstance(found, GatewayError)
        return found
    raise AssertionError("it was let in")


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_refusal_takes_as_long_whether_or_not_there_is_such_a_key(
    authenticator: Authenticator, no_collections: None
) -> None:
    kinds = {"unknown": InvalidApiKey, "blocked": BlockedApiKey, "expired": ExpiredApiKey, "team": BlockedApiKey}
    failures = AuthenticationThrottle(10**9)
    for kind in kinds:
        # what is made of a key at its first use is made
        for number in range(KEYS):
            refusal(authenticator, failures, key(kind, number), "192.0.2.1")
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(KEYS):
        # in turn: whatever else the machine does concerns all alike
        for kind, error in kinds.items():
            presented = key(kind, number)
            began = time.perf_counter()
            found = refusal(authenticator, failures, presented, "192.0.2.1")
            taken[kind].append(time.perf_counter() - began)
            assert type(found) is error
    medians = {kind: median(times) for kind, times in taken.items()}
    assert max(medians.values()) < FACTOR * min(medians.values()), medians


def test_a_refusal_takes_as_long_however_much_of_a_key_is_right(
    authenticator: Authenticator, no_collections: None
) -> None:
    failures = AuthenticationThrottle(10**9)
    right = key("valid", 7)
    guesses = {share: right[: int(len(right) * share)].ljust(len(right), "x") for share in (0.1, 0.5, 0.99)}
    taken: dict[float, list[float]] = {share: [] for share in guesses}
    for _ in range(2 * KEYS):
        for share, guess in guesses.items():
            began = time.perf_counter()
            refusal(authenticator, failures, guess, "192.0.2.1")
            taken[share].append(time.perf_counter() - began)
    medians = {share: median(times) for share, times in taken.items()}
    assert max(medians.values()) < FACTOR * min(medians.values()), medians


def test_unknown_keys_fill_no_memory(authenticator: Authenticator) -> None:
    failures = AuthenticationThrottle(60)

    def guess(start: int, count: int) -> None:
        for number in range(start, start + count):
            address = str(IPv4Address(0x0A000000 + number))
            refusal(authenticator, failures, key("unknown", number), address)

    tracemalloc.start()
    try:
        # as many addresses as are remembered: from here on there is nothing left that could grow
        guess(0, 2 * MOST_NAMES)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        guess(2 * MOST_NAMES, UNKNOWN)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(failures) == MOST_NAMES
    # a byte for each of them would be more
    assert grown < UNKNOWN


def test_unknown_keys_leave_the_index_as_it_was(authenticator: Authenticator, index: KeyIndex) -> None:
    failures = AuthenticationThrottle(None)

    # It tells the size of everything in it.
    before = repr(index)
    assert f" keys={4 * KEYS} " in before
    assert len(index) == 4 * KEYS
    for number in range(UNKNOWN):
        refusal(authenticator, failures, key("unknown", number), "192.0.2.1")
    assert repr(index) == before
    assert authenticator.keys_in_use == 0
    assert len(failures) == 0
