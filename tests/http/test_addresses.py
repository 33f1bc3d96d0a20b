"""Which address of a name a request goes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.http.client.addresses import MAX_ADDRESSES, MAX_PASS_OVER, PASS_OVER, Addresses

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"
SOME = st.lists(st.sampled_from([A, B, C, "192.0.2.4", "2001:db8::1"]), min_size=1, max_size=5, unique=True)


def of(load: dict[str, int]) -> Callable[[str], int]:
    return lambda address: load.get(address, 0)


def known(*addresses: str) -> Addresses:
    found = Addresses()
    found.update(addresses)
    return found


@given(SOME, st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 9)))
def test_a_request_goes_to_an_address_with_the_least_load(some: list[str], load: dict[str, int]) -> None:
    best = known(*some).best(of(load), 0.0)
    assert load.get(best, 0) == min(load.get(each, 0) for each in some)


@given(SOME, st.integers(1, 50))
def test_equal_addresses_take_turns(some: list[str], rounds: int) -> None:
    found = known(*some)
    taken = Counter(found.best(of({}), 0.0) for _ in range(rounds * len(some)))
    assert set(taken.values()) == {rounds}


@given(SOME, st.sets(st.sampled_from([A, B, C])), st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 9)))
def test_every_address_is_tried_and_the_passed_over_ones_last(
    some: list[str], dead: set[str], load: dict[str, int]
) -> None:
    found = known(*some)
    for each in dead:
        found.failed(each, 0.0)
    order = found.order(of(load), 1.0)
    assert sorted(order) == sorted(some)
    alive = [each for each in some if each not in dead]
    assert set(order[: len(alive)]) == set(alive)


def test_an_address_that_accepts_no_connection_is_passed_over_and_tried_by_one_connection_at_a_time() -> None:
    found = known(A, B)
    assert found.failed(A, 0.0)
    assert {found.best(of({B: 9}), PASS_OVER - 0.1) for _ in range(4)} == {B}
    assert found.order(of({B: 9}), PASS_OVER)[0] == A
    assert found.order(of({B: 9}), PASS_OVER)[0] == B, "one connection tries it"
    assert found.accepted(A)
    assert found.order(of({B: 9}), PASS_OVER)[0] == A


def test_it_is_passed_over_longer_each_time_up_to_a_bound() -> None:
    found = known(A, B)
    now, pauses = 0.0, []
    found.failed(A, now)
    for _ in range(6):
        began = now
        while found.order(of({B: 9}), now)[0] != A:
            now += 0.5
        pauses.append(now - began)
        found.failed(A, now)
    assert pauses == [PASS_OVER, 10.0, 20.0, 40.0, MAX_PASS_OVER, MAX_PASS_OVER]


def test_connections_that_fail_together_count_once() -> None:
    found = known(A, B)
    assert [found.failed(A, 0.0) for _ in range(50)] == [True] + [False] * 49
    assert found.order(of({B: 9}), PASS_OVER)[0] == A


def test_where_all_are_dead_all_are_tried() -> None:
    found = known(A, B)
    found.failed(A, 0.0)
    found.failed(B, 0.0)
    assert {found.best(of({}), 0.1) for _ in range(4)} == {A, B}


def test_new_addresses_replace_the_old_ones_and_forget_their_faults() -> None:
    found = known(A, B)
    found.failed(A, 0.0)
    assert found.update([B, C, B]) == {A}
    assert found.known == (B, C)
    assert found.update([A]) == {B, C}
    assert found.best(of({}), 0.1) == A
    assert not found.accepted(A)
    assert not found.failed(C, 0.2), "it is not known any more"


def test_a_resolver_may_give_any_number_of_them() -> None:
    found = known(*(f"2001:db8::{number:x}" for number in range(1000)))
    assert len(found.known) == MAX_ADDRESSES
